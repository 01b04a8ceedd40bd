"""The losses of prompt learning: the paper's two, and what its table 5 compares them with (method M4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from fmwsss.core.labels import IGNORE

SMALLEST_SCALE = 1e-12  # of a map that is made relative: one that is nought stays nought


def multi_label_contrastive(
    logits: Float[Tensor, "batch classes"], present: Bool[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Multi-label contrastive loss (M4): each present class against the classes absent from its image.

    Mean over (image, present class) pairs of log(exp(Y_p) + sum over absent n of exp(Y_n)) - Y_p. A pair without an
    absent class does not count; a batch without a pair gives a zero that is connected to `logits`.
    """
    counted = present & ~present.all(dim=1, keepdim=True)
    image, column = counted.nonzero(as_tuple=True)
    if len(image) == 0:
        return logits.sum() * 0
    positive = logits[image, column]
    negative = logits[image].masked_fill(present[image], -torch.inf).logsumexp(dim=1)
    return (torch.logaddexp(positive, negative) - positive).mean()


def binary_cross_entropy(
    logits: Float[Tensor, "batch classes"], present: Bool[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """The baseline (M4): binary cross-entropy of sigmoid(Y), mean over images and classes."""
    return functional.binary_cross_entropy_with_logits(logits, present.to(logits))


def cam_activation(
    cam_maps: Float[Tensor, "rows grid_height grid_width"],
    labels: UInt8[Tensor, "batch height width"] | Int[Tensor, "batch height width"],
    image: Int[Tensor, "rows"],
    class_index: Int[Tensor, "rows"],
    *,
    is_relative: bool = False,
) -> Float[Tensor, ""]:
    """CAM activation loss (M4): lift each map to its own maximum on its class, press it to 0 elsewhere.

    The maps are upsampled bilinearly (align_corners False) to the label maps. For a row of class c: m = the maximum
    over its pixels labelled c, at least 0, held fixed; |m - CAM| on those pixels, max(CAM, 0) on the other labelled
    pixels. The sum over all rows is divided by the number of their labelled pixels (not 255). Rows of an image whose
    label map shows no foreground do not count; without any row left the loss is a zero connected to `cam_maps`.

    Args:
        cam_maps: raw maps (not rectified), as `ClassMaps.cam` on its grid.
        labels: 0 background, 1..F classes, 255 ignore.
        image: label map of each row.
        class_index: foreground column of each row, 0-based: its pixels are labelled class_index + 1.
        is_relative: divide each map by its largest absolute value first, held fixed. Raw maps are as small as a mean
            over tokens of the gradient of another, and their loss is then nothing beside one on the logits.
    """
    counted = _labelled_rows(cam_maps, labels, image, class_index)
    if counted is None:
        return cam_maps.sum() * 0
    cam, on_class, valid = counted
    target = cam.detach().masked_fill(~on_class, 0).amax(dim=(1, 2), keepdim=True).clamp(min=0)
    cost = torch.where(on_class, (target - cam).abs(), cam.clamp(min=0)) * valid
    if is_relative:
        cost = cost / cam.detach().abs().amax(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_SCALE)
    return cost.sum() / valid.sum()


def pixel_cross_entropy(
    cam_maps: Float[Tensor, "rows grid_height grid_width"],
    labels: UInt8[Tensor, "batch height width"] | Int[Tensor, "batch height width"],
    image: Int[Tensor, "rows"],
    class_index: Int[Tensor, "rows"],
) -> Float[Tensor, ""]:
    """The baseline of `cam_activation` (M4): binary cross-entropy of sigmoid(CAM), pixel by pixel.

    The same maps, pixels, mean and arguments: a row's pixels labelled with its class are 1, its other labelled
    pixels 0.
    """
    counted = _labelled_rows(cam_maps, labels, image, class_index)
    if counted is None:
        return cam_maps.sum() * 0
    cam, on_class, valid = counted
    cost = functional.binary_cross_entropy_with_logits(cam, on_class.to(cam), reduction="none") * valid
    return cost.sum() / valid.sum()


def _labelled_rows(
    cam_maps: Tensor, labels: Tensor, image: Tensor, class_index: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Upsampled maps of the rows that count, which of their pixels show the class, and which are labelled."""
    labels = labels.long()
    shows_class = ((labels > 0) & (labels != IGNORE)).flatten(1).any(dim=1)
    rows = shows_class[image].nonzero()[:, 0]
    if len(rows) == 0:
        return None
    size = (labels.shape[1], labels.shape[2])
    cam = functional.interpolate(cam_maps[rows, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    label = labels[image[rows]]
    return cam, label == class_index[rows, None, None] + 1, label != IGNORE
