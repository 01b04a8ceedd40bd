"""The losses of prompt learning: the paper's two, and what its table 5 compares them with (method M4)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from fmwsss.core.labels import IGNORE

SMALLEST_SCALE = 1e-12  # of a map that is made relative: one that is nought stays nought

# What a loss is the mean over: all pairs (or their pixels) of the batch, or each image first and then the images.
MeanOver = Literal["batch", "image"]


def multi_label_contrastive(
    logits: Float[Tensor, "batch classes"], present: Bool[Tensor, "batch classes"], mean_over: MeanOver = "batch"
) -> Float[Tensor, ""]:
    """Multi-label contrastive loss (M4): each present class against the classes absent from its image.

    Mean over (image, present class) pairs of log(exp(Y_p) + sum over absent n of exp(Y_n)) - Y_p. A pair without an
    absent class does not count; a batch without a pair gives a zero that is connected to `logits`.

    Args:
        logits: Y of every image and foreground class.
        present: which classes each image is labelled with.
        mean_over: `batch` all its pairs (the authors), `image` the pairs of each image first, then the images that have
            one (the paper).
    """
    # Where `present` is: on the host, nothing waits for the device of the logits.
    counted = counted_pairs(present)
    image, column = (index.to(logits.device, non_blocking=True) for index in counted.nonzero().unbind(1))
    if len(image) == 0:
        return logits.sum() * 0
    counted, present = (each.to(logits.device, non_blocking=True) for each in (counted, present))
    positive = logits[image, column]
    negative = logits[image].masked_fill(present[image], -torch.inf).logsumexp(dim=1)
    cost = torch.logaddexp(positive, negative) - positive
    if mean_over == "batch":
        return cost.mean()
    return (cost / counted.sum(dim=1)[image]).sum() / counted.any(dim=1).sum()


def counted_pairs(present: Bool[Tensor, "batch classes"]) -> Bool[Tensor, "batch classes"]:
    """The (image, present class) pairs of `multi_label_contrastive`: those with a class that is absent."""
    return present & ~present.all(dim=1, keepdim=True)


def binary_cross_entropy(
    logits: Float[Tensor, "batch classes"], present: Bool[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """The baseline (M4): binary cross-entropy of sigmoid(Y), mean over images and classes.

    Args:
        logits: Y, image against class.
        present: which classes the image's labels name.

    Returns:
        The mean, a scalar.
    """
    return functional.binary_cross_entropy_with_logits(logits, present.to(logits, non_blocking=True))


def cam_activation(
    cam_maps: Float[Tensor, "rows grid_height grid_width"],
    labels: UInt8[Tensor, "batch height width"] | Int[Tensor, "batch height width"],
    image: Int[Tensor, "rows"],
    class_index: Int[Tensor, "rows"],
    *,
    rows: Int[Tensor, "counted"] | None = None,
    is_relative: bool = False,
    is_rectified: bool = False,
    mean_over: MeanOver = "batch",
) -> Float[Tensor, ""]:
    """CAM activation loss (M4): lift each map to its own maximum on its class, press it to 0 elsewhere.

    The maps are upsampled bilinearly (align_corners False) to the label maps. For a row of class c: m = the maximum
    over its pixels labelled c, at least 0, held fixed; |m - CAM| on those pixels, max(CAM, 0) on the other labelled
    pixels. Rows of an image whose label map shows no foreground do not count; without any row left the loss is a zero
    connected to `cam_maps`.

    Args:
        cam_maps: raw maps (not rectified), as `ClassMaps.cam` on its grid.
        labels: 0 background, 1..F classes, 255 ignore.
        image: label map of each row.
        class_index: foreground column of each row, 0-based: its pixels are labelled class_index + 1.
        rows: those that count, where they are known; else the device of the labels is waited for.
        is_relative: divide each map by its largest absolute value first, held fixed. Raw maps are as small as a mean
            over tokens of the gradient of another, and their loss is then nothing beside one on the logits.
        is_rectified: negative values of the upsampled maps are 0 first, as the paper has it; the authors' are raw.
        mean_over: `batch` divides the sum over all rows by the number of their labelled pixels (not 255; the authors).
            `image` divides the sum over the rows of each image by rows x height x width, and takes the mean of the
            images that count (the paper).
    """
    counted = _labelled_rows(cam_maps, labels, image, class_index, rows)
    if counted is None:
        return cam_maps.sum() * 0
    cam, on_class, valid, owner = counted
    if is_rectified:
        cam = cam.clamp(min=0)
    target = cam.detach().masked_fill(~on_class, 0).amax(dim=(1, 2), keepdim=True).clamp(min=0)
    cost = torch.where(on_class, (target - cam).abs(), cam.clamp(min=0)) * valid
    if is_relative:
        cost = cost / cam.detach().abs().amax(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_SCALE)
    if mean_over == "batch":
        return cost.sum() / valid.sum()
    # Not `bincount`, which waits for the device.
    num_rows = torch.zeros(len(labels), dtype=torch.int64, device=owner.device)
    num_rows.scatter_add_(0, owner, torch.ones_like(owner))
    return (cost.mean(dim=(1, 2)) / num_rows[owner]).sum() / (num_rows > 0).sum()


def pixel_cross_entropy(
    cam_maps: Float[Tensor, "rows grid_height grid_width"],
    labels: UInt8[Tensor, "batch height width"] | Int[Tensor, "batch height width"],
    image: Int[Tensor, "rows"],
    class_index: Int[Tensor, "rows"],
    *,
    rows: Int[Tensor, "counted"] | None = None,
) -> Float[Tensor, ""]:
    """The baseline of `cam_activation` (M4): binary cross-entropy of sigmoid(CAM), pixel by pixel.

    The same maps, pixels, mean and arguments: a row's pixels labelled with its class are 1, its other labelled
    pixels 0.

    Args:
        cam_maps: one map for each (image, class) row, on the patch grid, before the sigmoid.
        labels: seeds of the batch, in pixels; 255 is ignored.
        image: which image of the batch a row is of.
        class_index: which class a row is of, 1 to 254.
        rows: the rows that count; None for all.

    Returns:
        The mean over labelled pixels, a scalar; 0 where there are none.
    """
    counted = _labelled_rows(cam_maps, labels, image, class_index, rows)
    if counted is None:
        return cam_maps.sum() * 0
    cam, on_class, valid, _ = counted
    cost = functional.binary_cross_entropy_with_logits(cam, on_class.to(cam), reduction="none") * valid
    return cost.sum() / valid.sum()


def _labelled_rows(
    cam_maps: Tensor, labels: Tensor, image: Tensor, class_index: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Upsampled maps of the rows that count, which of their pixels show the class, which are labelled; whose rows."""
    if rows is None:
        rows = shows_class(labels)[image].nonzero()[:, 0]
    labels = labels.long()
    if len(rows) == 0:
        return None
    size = (labels.shape[1], labels.shape[2])
    cam = functional.interpolate(cam_maps[rows, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    label = labels[image[rows]]
    return cam, label == class_index[rows, None, None] + 1, label != IGNORE, image[rows]


def shows_class(
    labels: UInt8[Tensor, "batch height width"] | Int[Tensor, "batch height width"],
) -> Bool[Tensor, "batch"]:
    """Which label maps show any foreground: the images of `cam_activation` that count."""
    return ((labels > 0) & (labels != IGNORE)).flatten(1).any(dim=1)
