"""One step of prompt learning: the loss of a batch and the learning rate of an iteration (method M3 and M4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from fmwsss.core.class_maps.softmax_gradcam import softmax_gradcam
from fmwsss.core.clip.last_block import LastBlock, MapProduct
from fmwsss.core.labels import IGNORE
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.prompts.losses import (
    MeanOver,
    binary_cross_entropy,
    cam_activation,
    counted_pairs,
    multi_label_contrastive,
    pixel_cross_entropy,
    shows_class,
)

ClassificationLoss = Literal["mcl", "bce"]
CamLoss = Literal["cal", "relative-cal", "ce"]
CamMap = Literal["raw", "rectified"]


@dataclass(frozen=True)
class PromptLoss:
    """The two losses of a batch, differentiable to the contexts, each with what it is the mean over.

    The counts let several workers average as one would: a mean of means is another number.

    Attributes:
        classification: mean over `num_classified` pairs of an image and a class, or images.
        cam: mean over `num_mapped` labelled pixels of all maps, or images; 0 without label maps.
    """

    classification: Float[Tensor, ""]
    cam: Float[Tensor, ""]
    num_classified: Int[Tensor, ""]
    num_mapped: Int[Tensor, ""]

    def weighted(
        self,
        classification_weight: float,
        cam_weight: float,
        all_classified: Int[Tensor, ""],
        all_mapped: Int[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """This worker's part of the loss that is minimised, and of its two terms.

        Args:
            classification_weight: of the loss on the logits.
            cam_weight: of the loss on the maps.
            all_classified: the sum of `num_classified` over all workers.
            all_mapped: that of `num_mapped`.
        """
        classification = self.classification * share_of(self.num_classified, all_classified).to(self.classification)
        cam = self.cam * share_of(self.num_mapped, all_mapped).to(self.cam)
        return classification_weight * classification + cam_weight * cam, classification, cam


def prompt_loss(
    block: LastBlock | MapProduct,
    grid: tuple[int, int],
    logit_scale: float,
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
    present: Bool[Tensor, "batch classes"],
    labels: UInt8[Tensor, "batch height width"] | None,
    shown: Bool[Tensor, "batch"] | None = None,
    *,
    classification_loss: ClassificationLoss = "mcl",
    cam_loss: CamLoss = "cal",
    cam_map: CamMap = "raw",
    mean_over: MeanOver = "batch",
) -> PromptLoss:
    """A loss on the logits, and where there are label maps one on the class activation maps (method M4).

    Args:
        block: of the views.
        grid: (h, w) patch tokens of a view.
        logit_scale: the CLIP's.
        foreground, background: text embeddings, as `PromptLearner` gives them.
        present: which foreground classes each image is labelled with. Which maps there are follows from it: on the
            host, it makes nothing wait for a device.
        labels: coarse seeds of the same views; None while the classification prompts are learned.
        shown: `shows_class` of the labels; best on the host, as `present`.
        classification_loss: `mcl` multi-label contrastive, `bce` binary cross-entropy.
        cam_loss: `cal` CAM activation, `relative-cal` the same of maps divided by their largest values, `ce` pixel-wise
            cross-entropy.
        cam_map: whether CAM activation reads the raw maps (the authors) or the rectified ones (the paper).
        mean_over: as `multi_label_contrastive` and `cam_activation` have it; their baselines know `batch` alone.
    """
    device = block.embedding.device
    maps = softmax_gradcam(block, logit_scale, foreground, background, present)
    if classification_loss == "mcl":
        classification = multi_label_contrastive(maps.logits, present, mean_over)
        pairs = counted_pairs(present)
        num_classified = (pairs if mean_over == "batch" else pairs.any(dim=1)).sum()
    else:
        classification = binary_cross_entropy(maps.logits, present)
        num_classified = torch.tensor(present.numel())
    num_classified = num_classified.to(device, non_blocking=True)
    if labels is None:
        return PromptLoss(
            classification, classification.new_zeros(()), num_classified, torch.zeros_like(num_classified)
        )
    shown = shows_class(labels) if shown is None else shown
    arguments = (maps.cam.reshape(-1, *grid), labels, maps.image, maps.class_index)
    num_valid = (labels != IGNORE).flatten(1).sum(dim=1)
    num_mapped = (num_valid * shown.to(device, non_blocking=True))[maps.image].sum()
    # As `present` has them, and as `maps` has them there.
    rows = shown.to(present.device)[present.nonzero()[:, 0]].nonzero()[:, 0].to(device, non_blocking=True)
    if cam_loss == "ce":
        return PromptLoss(classification, pixel_cross_entropy(*arguments, rows=rows), num_classified, num_mapped)
    if mean_over == "image":
        num_mapped = (shown.to(present.device) & present.any(dim=1)).sum().to(device, non_blocking=True)
    cam = cam_activation(
        *arguments, rows=rows, is_relative=cam_loss == "relative-cal", is_rectified=cam_map == "rectified",
        mean_over=mean_over,
    )  # fmt: skip
    return PromptLoss(classification, cam, num_classified, num_mapped)


def share_of(count: Int[Tensor, ""], total: Int[Tensor, ""]) -> Float64[Tensor, ""]:
    """What part of a mean over `total` a worker's mean over `count` is; 0 where there is nothing to average.

    Args:
        count: what this worker averaged over.
        total: the same over all workers.

    Returns:
        count / total, float64.
    """
    return count.double() / total.clamp(min=1).double()


def learning_rate(
    iteration: int, num_iterations: int, base: float, warmup_iterations: int, warmup_learning_rate: float
) -> float:
    """Constant warm-up, then a cosine to zero, per iteration (method M3).

    Args:
        iteration: from 0.
        num_iterations: of the whole training.
        base: the rate after the warm-up.
        warmup_iterations: how long the rate is `warmup_learning_rate`.
        warmup_learning_rate: of the first iterations.

    Returns:
        The rate of this iteration.
    """
    if iteration < warmup_iterations:
        return warmup_learning_rate
    progress = (iteration - warmup_iterations) / max(1, num_iterations - warmup_iterations)
    return base * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    learner: PromptLearner, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """Stochastic gradient descent on the contexts alone (method M3).

    Args:
        learner: whose contexts are trained.
        learning_rate: of the first iteration.
        momentum: 0 to 1.
        weight_decay: L2, of the contexts.

    Returns:
        An optimizer of what needs gradients.
    """
    contexts = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    return torch.optim.SGD(contexts, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
