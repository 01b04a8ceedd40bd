"""Section `learn` of a run file: the two sets of learned prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmwsss.core.errors import InputError
from fmwsss.core.prompts.defaults import INIT_STD, NUM_BACKGROUNDS, NUM_CONTEXT
from fmwsss.jobs.config.base import Count, Section, Share


class AugmentSection(Section):
    """Views of an image in training (M3)."""

    long_side_px: tuple[Count, Count] = (288, 480)
    """Least and greatest length of an image's long side, in pixels; authors: [288, 480] VOC, [318, 530] COCO (M3)."""
    crop_px: Count = 224
    """Side of the square crop, in pixels (M3)."""
    jitter: bool | Literal["together", "authors"] = True
    """Colour changes: true or `together`, all four in half of the views; `authors`, each drawn by itself (M3)."""
    flip: bool = True
    """Mirror half of the views (M3)."""


Weight = Annotated[float, Field(ge=0)]
Context = Literal["unified", "class-specific"]
NamePosition = Literal["end", "front", "middle"]
Backgrounds = Literal["named", "learned"]
CamLoss = Literal["cal", "relative-cal", "ce"]


class LearnSection(Section):
    """One set of prompts and how it is learned (M3 and M4).

    What is minimised is classification_weight * (loss on the logits) + cam_weight * (loss on the maps).
    """

    context: Context
    """One set of context vectors for all prompts, or one for each prompt (M3)."""
    name_position: NamePosition
    """Where the name stands among the context vectors (M3)."""
    num_context: Count = NUM_CONTEXT
    """Context vectors of a prompt (M3)."""
    init_std: Annotated[float, Field(gt=0)] = INIT_STD
    """Standard deviation of the initial context vectors; CoOp .02, authors .0125 to .015 (M3)."""
    backgrounds: Backgrounds
    """Background prompts: the vocabulary's words, or prompts without a name (M3)."""
    num_backgrounds: Annotated[int, Field(ge=0)] = NUM_BACKGROUNDS
    """Prompts without a name; read with `backgrounds: learned` only (M3)."""
    classification_loss: Literal["mcl", "bce"] = "mcl"
    """Loss on the logits: multi-label contrastive, or binary cross-entropy (M4)."""
    cam_loss: CamLoss = "cal"
    """Loss on the class maps: CAM activation loss, the same on maps divided by their maximum, or cross-entropy (M4)."""
    cam_map: Literal["raw", "rectified"] = "raw"
    """The map that CAL reads; authors raw, paper rectified (M4)."""
    mean_over: Literal["batch", "image"] = "batch"
    """What MCL and CAL are means over; authors the batch, paper each image first (M4)."""
    classification_weight: Weight
    """Weight of the loss on the logits (M4)."""
    cam_weight: Weight
    """Weight of the loss on the class maps (M4)."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Length in epochs, or give `iterations`; without either 25 epochs, 200 iterations at least, 1,800 at most (M3)."""
    iterations: Count | None = None
    """Length in iterations, in place of `epochs` (M3)."""
    batch_size: Count = 16
    """Images of a batch, of all workers together (M3)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of SGD after the warm-up; it falls to 0 as a cosine (M3)."""
    momentum: Share = 0.9
    """Momentum of SGD (M3)."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of SGD (M3)."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 20
    """Iterations of warm-up at a constant rate; authors: 500 VOC, 1,000 COCO (M3)."""
    warmup_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate of the warm-up (M3)."""
    augment: AugmentSection = AugmentSection()
    """Views of an image in training (M3)."""
    cache: Literal["input", "product"] | None = "input"
    """What is kept of fixed views, so that the image encoder does not run in training; null: new views (M2.1)."""
    cached_views: Count = 4
    """Fixed views of each image; read with `cache` only."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Of both encoders; maps and losses are always float32. Null: bfloat16 on a GPU, float32 on a CPU."""

    @model_validator(mode="after")
    def _one_length(self) -> LearnSection:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give either `epochs` or `iterations`")
        return self

    def num_iterations(self, batches_per_epoch: int) -> int:
        """How long to learn: as told, or 25 epochs within 200 to 1,800 iterations.

        25 epochs are the paper's for VOC and 1,800 iterations the authors'; a few images alone need more than 25
        looks at each, and prompts of one context have no use for more than the authors' length.
        """
        if self.iterations is not None:
            return self.iterations
        if self.epochs is not None:
            return max(1, round(self.epochs * batches_per_epoch))
        return min(1800, max(200, 25 * batches_per_epoch))

    def check_warmup(self, name: str, num_iterations: int) -> None:
        """Looks whether anything but warm-up is left to learn; `name` is the key of these settings below `learn`.

        Args:
            name: classification or segmentation.
            num_iterations: of the whole training.

        Raises:
            InputError: there is nothing but warm-up.
        """
        if self.warmup_iterations >= num_iterations:
            raise InputError(
                f"prompts/{name} would take {num_iterations} iterations, and learn.{name}.warmup_iterations is "
                f"{self.warmup_iterations}: nothing would be learned; lower it, or raise epochs"
            )


class ClassificationPrompts(LearnSection):
    """The first set: from image labels alone, so without a loss on maps."""

    context: Context = "unified"
    """One set of context vectors for all prompts, or one for each prompt; paper and authors unified (M3)."""
    name_position: NamePosition = "end"
    """Where the name stands among the context vectors; paper and authors at the end (M3)."""
    backgrounds: Backgrounds = "named"
    """Background prompts: the vocabulary's words, or prompts without a name; paper and authors named (M3)."""
    classification_weight: Weight = 1.0
    """Weight of the loss on the logits; paper and authors 1 (M4)."""
    cam_weight: Weight = 0.0
    """Weight of the loss on the class maps: only 0 is possible, for there are no seeds before these prompts."""

    @model_validator(mode="after")
    def _no_maps(self) -> ClassificationPrompts:
        if self.cam_weight:
            raise ValueError("`cam_weight` needs seeds, and there are none before these prompts: only 0 is possible")
        if not self.classification_weight:
            raise ValueError("`classification_weight` must be larger than 0: nothing would be learned")
        return self


class SegmentationPrompts(LearnSection):
    """The second set: from coarse seeds. The paper and its authors have the loss on maps alone (M4)."""

    context: Context = "class-specific"
    """One set of context vectors for all prompts, or one for each prompt; paper class-specific (M3)."""
    name_position: NamePosition = "front"
    """Where the name stands among the context vectors; paper in front (M3)."""
    backgrounds: Backgrounds = "learned"
    """Background prompts: the vocabulary's words, or prompts without a name; paper learned (M3)."""
    cam_loss: CamLoss = "relative-cal"
    """Loss on the class maps: CAL (paper and authors), CAL on maps divided by their maximum, or cross-entropy (M4)."""
    classification_weight: Weight = 1.0
    """Weight of the loss on the logits; paper and authors 0 (M4)."""
    cam_weight: Weight = 5.0
    """Weight of the loss on the class maps; paper and authors 1 (M4)."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> SegmentationPrompts:
        if not (self.classification_weight or self.cam_weight):
            raise ValueError("`classification_weight` and `cam_weight` are both 0: nothing would be learned")
        return self


class LearnStages(Section):
    """The two sets of prompts, in the order in which they are learned."""

    classification: ClassificationPrompts = ClassificationPrompts()
    """The prompts of the coarse seeds, learned from image labels."""
    segmentation: SegmentationPrompts = SegmentationPrompts()
    """The prompts of the fine seeds, learned from coarse seeds."""
    joint_every: Count | None = None
    """Iterations after which the coarse seeds are made anew, from the classification prompts of that iteration; with
    the weights 1, 0 and 0, 1 that is the paper's joint loss (M4). Null: made once, from the final prompts."""
