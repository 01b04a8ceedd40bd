"""One step of prompt learning: the loss of a batch and the learning rate of an iteration (method M3 and M4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fmwsss_core.cam import softmax_gradcam
from fmwsss_core.clip import FrozenClip
from fmwsss_core.losses import cam_activation, multi_label_contrastive
from fmwsss_core.prompts import PromptLearner


@dataclass(frozen=True)
class PromptLoss:
    """The loss of a batch, differentiable to the contexts, and its two parts as they were before weighting."""

    total: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    cam: Float[Tensor, ""]


def prompt_loss(
    clip: FrozenClip,
    learner: PromptLearner,
    images: UInt8[Tensor, "batch 3 height width"],
    present: Bool[Tensor, "batch classes"],
    labels: UInt8[Tensor, "batch height width"] | None,
    cam_loss_weight: float,
) -> PromptLoss:
    """Multi-label contrastive loss, plus the CAM activation loss where there are label maps (method M4).

    Args:
        clip: frozen.
        learner: the contexts that are learned.
        images: views, RGB.
        present: which foreground classes each image is labelled with.
        labels: coarse seeds of the same views; None while the classification prompts are learned.
        cam_loss_weight: factor of the CAM activation loss; no effect without `labels`.
    """
    features = clip.encode_image(clip.preprocess(images), with_attention=False)
    foreground, background = learner()
    maps = softmax_gradcam(clip, features.last_block_input, foreground, background, present)
    contrastive = multi_label_contrastive(maps.logits, present)
    cam = contrastive.new_zeros(())
    if labels is not None:
        grids = maps.cam.reshape(-1, *features.grid)
        cam = cam_activation(grids, labels, maps.image, maps.class_index)
    return PromptLoss(contrastive + cam_loss_weight * cam, contrastive.detach(), cam.detach())


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
