"""Section `learn` of a run file: the two sets of learned prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmwsss.jobs.config.base import Count, Section, Share


class AugmentSection(Section):
    """Views of an image in training (method M3)."""

    long_side_px: tuple[Count, Count] = (288, 480)
    crop_px: Count = 224
    jitter: bool = True
    flip: bool = True


Weight = Annotated[float, Field(ge=0)]


class LearnSection(Section):
    """One set of prompts and how it is learned (method M3 and M4).

    What is minimised is classification_weight * (loss on the logits) + cam_weight * (loss on the maps).
    """

    context: Literal["unified", "class-specific"]
    name_position: Literal["end", "front", "middle"]
    num_context: Count = 16
    init_std: Annotated[float, Field(gt=0)] = 0.02
    backgrounds: Literal["named", "learned"]
    num_backgrounds: Annotated[int, Field(ge=0)] = 25
    classification_loss: Literal["mcl", "bce"] = "mcl"
    cam_loss: Literal["cal", "relative-cal", "ce"] = "cal"
    cam_map: Literal["raw", "rectified"] = "raw"  # that CAL reads; authors raw, paper rectified
    mean_over: Literal["batch", "image"] = "batch"  # of MCL and CAL; authors batch, paper each image first
    classification_weight: Weight
    cam_weight: Weight
    epochs: Annotated[float, Field(gt=0)] | None = None  # or `iterations`; without either see `num_iterations`
    iterations: Count | None = None
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    warmup_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    augment: AugmentSection = AugmentSection()
    cache: Literal["input", "product"] | None = None  # what is kept of fixed views; null draws a new view each time
    cached_views: Count = 4
    # Of both towers; maps and losses are always float32. Null: bfloat16 on a GPU, float32 on a CPU.
    precision: Literal["float32", "bfloat16"] | None = None

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
        """ValueError if there is nothing but warm-up; `name` is the key of these settings below `learn`."""
        if self.warmup_iterations >= num_iterations:
            raise ValueError(
                f"prompts/{name} would take {num_iterations} iterations, and learn.{name}.warmup_iterations is "
                f"{self.warmup_iterations}: nothing would be learned; lower it, or raise epochs"
            )


class ClassificationPrompts(LearnSection):
    """The first set: from image labels alone, so without a loss on maps."""

    classification_weight: Weight = 1.0
    cam_weight: Weight = 0.0

    @model_validator(mode="after")
    def _no_maps(self) -> ClassificationPrompts:
        if self.cam_weight:
            raise ValueError("`cam_weight` needs seeds, and there are none before these prompts: only 0 is possible")
        if not self.classification_weight:
            raise ValueError("`classification_weight` must be larger than 0: nothing would be learned")
        return self


class SegmentationPrompts(LearnSection):
    """The second set: from coarse seeds. The paper and its authors have the loss on maps alone (M4)."""

    classification_weight: Weight = 0.0
    cam_weight: Weight = 1.0

    @model_validator(mode="after")
    def _something_is_learned(self) -> SegmentationPrompts:
        if not (self.classification_weight or self.cam_weight):
            raise ValueError("`classification_weight` and `cam_weight` are both 0: nothing would be learned")
        return self


class LearnStages(Section):
    """The two sets of prompts, in the order in which they are learned.

    `joint_every`: every so many iterations the segmentation prompts get new coarse seeds, from the classification
    prompts as they were at that iteration; with the weights 1, 0 and 0, 1 that is the paper's joint loss (M4). Left
    out, they get those of the final ones.
    """

    classification: ClassificationPrompts
    segmentation: SegmentationPrompts
    joint_every: Count | None = None
