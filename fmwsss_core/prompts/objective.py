"""One step of prompt learning: the loss of a batch and the learning rate of an iteration (method M3 and M4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fmwsss.core.class_maps.softmax_gradcam import softmax_gradcam
from fmwsss.core.clip.last_block import LastBlock, MapProduct
from fmwsss.core.labels import IGNORE
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.prompts.losses import (
    binary_cross_entropy,
    cam_activation,
    multi_label_contrastive,
    pixel_cross_entropy,
)

ClassificationLoss = Literal["mcl", "bce"]
CamLoss = Literal["cal", "relative-cal", "ce"]


@dataclass(frozen=True)
class PromptLoss:
    """The two losses of a batch, differentiable to the contexts, each with what it is the mean over.

    The counts let several workers average as one would: a mean of means is another number.

    Attributes:
        classification: mean over `num_pairs` pairs of an image and a class.
        cam: mean over `num_pixels` labelled pixels of all maps; 0 without label maps.
    """

    classification: Float[Tensor, ""]
    cam: Float[Tensor, ""]
    num_pairs: int
    num_pixels: int


def prompt_loss(
    block: LastBlock | MapProduct,
    grid: tuple[int, int],
    logit_scale: float,
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
    present: Bool[Tensor, "batch classes"],
    labels: UInt8[Tensor, "batch height width"] | None,
    *,
    classification_loss: ClassificationLoss = "mcl",
    cam_loss: CamLoss = "cal",
) -> PromptLoss:
    """A loss on the logits, and where there are label maps one on the class activation maps (method M4).

    Args:
        block: of the views.
        grid: (h, w) patch tokens of a view.
        logit_scale: the CLIP's.
        foreground, background: text embeddings, as `PromptLearner` gives them.
        present: which foreground classes each image is labelled with.
        labels: coarse seeds of the same views; None while the classification prompts are learned.
        classification_loss: `mcl` multi-label contrastive, `bce` binary cross-entropy.
        cam_loss: `cal` CAM activation, `relative-cal` the same of maps divided by their largest values, `ce` pixel-wise
            cross-entropy.
    """
    maps = softmax_gradcam(block, logit_scale, foreground, background, present)
    if classification_loss == "mcl":
        classification = multi_label_contrastive(maps.logits, present)
        num_pairs = int((present & ~present.all(dim=1, keepdim=True)).sum())
    else:
        classification, num_pairs = binary_cross_entropy(maps.logits, present), present.numel()
    if labels is None:
        return PromptLoss(classification, classification.new_zeros(()), num_pairs, 0)
    arguments = (maps.cam.reshape(-1, *grid), labels, maps.image, maps.class_index)
    if cam_loss == "ce":
        cam = pixel_cross_entropy(*arguments)
    else:
        cam = cam_activation(*arguments, is_relative=cam_loss == "relative-cal")
    shows_class = ((labels > 0) & (labels != IGNORE)).flatten(1).any(dim=1)
    valid = (labels != IGNORE).flatten(1).sum(dim=1) * shows_class
    return PromptLoss(classification, cam, num_pairs, int(valid[maps.image].sum()))


def share_of(count: int, total: int) -> float:
    """What part of a mean over `total` a worker's mean over `count` is; 0 where there is nothing to average."""
    return count / total if total else 0.0


def learning_rate(
    iteration: int, num_iterations: int, base: float, warmup_iterations: int, warmup_learning_rate: float
) -> float:
    """Constant warm-up, then a cosine to zero, per iteration (method M3)."""
    if iteration < warmup_iterations:
        return warmup_learning_rate
    progress = (iteration - warmup_iterations) / max(1, num_iterations - warmup_iterations)
    return base * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    learner: PromptLearner, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """Stochastic gradient descent on the contexts alone (method M3)."""
    contexts = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    return torch.optim.SGD(contexts, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
