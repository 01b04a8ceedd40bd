"""What a segmenter is to everything around it: losses from labels with ignored pixels, probabilities from an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.labels import IGNORE

# Of ImageNet, on pixels of 0..255: what every published backbone expects.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Segmenter(nn.Module, ABC):
    """A network that gives each pixel one of `num_classes` classes, background (0) among them.

    Args:
        num_classes: background included.
        size_divisor: height and width of its input are multiples of this.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, num_classes: int, size_divisor: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.size_divisor = size_divisor
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The part that may have been trained before, on something else."""

    @abstractmethod
    def measure(
        self, labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
    ) -> Float[Tensor, " sums"]:
        """What the losses of these labels are divided by.

        It adds up over workers and micro-batches: losses with the sum of the whole batch have gradients that add up to
        that of the whole batch.

        Args:
            labels: class indices; 255 is ignored.
            weights: of each pixel, 0 to 1; None for 1.

        Returns:
            Sums over the batch.
        """

    @abstractmethod
    def losses(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        labels: UInt8[Tensor, "batch height width"],
        weights: Float[Tensor, "batch height width"] | None,
        totals: Float[Tensor, " sums"],
        random_seeds: Sequence[int],
    ) -> dict[str, Float[Tensor, ""]]:
        """The parts of the loss, weighted; their sum is what is minimised.

        Args:
            images: RGB.
            labels: class of each pixel, 255 where it is ignored: it then has no influence on the loss.
            weights: of each pixel, 0 to 1; None counts all alike.
            totals: `measure`, summed over everything that makes up the batch.
            random_seeds: for what is drawn at random for each image.
        """

    @abstractmethod
    def scores(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """The probability of each class at each pixel; sums to 1 over the classes."""

    def normalise(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Pixels as the network expects them."""
        return (images.float() - self.pixel_mean) / self.pixel_std


def pixel_weights(
    labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
) -> Float[Tensor, "batch height width"]:
    """The weight of each pixel in a loss: that given, or 1; none where the label is 255.

    Args:
        labels: class indices; 255 is ignored.
        weights: of each pixel, 0 to 1; None for 1.

    Returns:
        0 or more for each pixel.
    """
    valid = (labels != IGNORE).float()
    return valid if weights is None else weights * valid


def pixel_loss(
    logits: Float[Tensor, "batch classes grid_height grid_width"],
    labels: UInt8[Tensor, "batch height width"],
    weights: Float[Tensor, "batch height width"] | None,
    total: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross entropy of each pixel, weighted, over the sum of `pixel_weights` of the whole batch; logits are resized.

    Args:
        logits: before the softmax, on any grid.
        labels: class indices; 255 is ignored.
        weights: of each pixel, 0 to 1; None for 1.
        total: what the sum is divided by, at least 1.

    Returns:
        A scalar.
    """
    logits = functional.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    truth = torch.where(labels == IGNORE, torch.zeros_like(labels), labels).long()
    entropy = functional.cross_entropy(logits, truth, reduction="none")
    return (entropy * pixel_weights(labels, weights)).sum() / total.to(logits.device).clamp(min=1.0)
