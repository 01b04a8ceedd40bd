"""Class maps from the similarity of patches with texts: no gradient (method M11, F1 f)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DecidedMaps:
    """Maps of one batch, one row per (image, present class), ordered by image and then class.

    Attributes:
        image: which image of the batch each row belongs to.
        class_index: foreground column of each row (0-based: class index minus 1).
        maps: cosines, or probabilities; differentiable to the text embeddings.
        background: highest probability of a background word at each patch; None without a softmax or without words.
    """

    image: Int[Tensor, "rows"]
    class_index: Int[Tensor, "rows"]
    maps: Float[Tensor, "rows tokens"]
    background: Float[Tensor, "batch tokens"] | None


def decide(
    similarity: Float[Tensor, "batch tokens texts"],
    present: Bool[Tensor, "batch classes"],
    softmax_scale: float | None,
    with_absent: bool = False,
) -> DecidedMaps:
    """Maps of the present classes from the cosines of patches and texts.

    Args:
        similarity: columns: classes, then background words.
        present: which classes each image shows.
        softmax_scale: factor of the cosines in a softmax over the present classes and the background words, whose
            probabilities are the maps; None: the maps are the cosines. A class that has no rival there, whose
            probability would be 1 everywhere, keeps its cosines.
        with_absent: whether classes that the image does not show are rivals too.
    """
    num_classes = present.shape[1]
    image, class_index = present.nonzero(as_tuple=True)
    own = similarity[image, :, class_index]
    if softmax_scale is None:
        return DecidedMaps(image, class_index, own, None)
    rivals = torch.ones_like(similarity[:, 0], dtype=torch.bool)
    if not with_absent:
        rivals[:, :num_classes] = present
    # An image without classes has no row; the words it then has alone are no reason for a nan.
    lowest = torch.finfo(similarity.dtype).min
    probability = torch.softmax((softmax_scale * similarity).masked_fill(~rivals[:, None], lowest), dim=2)
    is_alone = (rivals.sum(dim=1) == 1)[image]
    maps = torch.where(is_alone[:, None], own, probability[image, :, class_index])
    words = probability[:, :, num_classes:]
    return DecidedMaps(image, class_index, maps, words.amax(dim=2) if words.shape[2] else None)


def min_max(maps: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    """Each row from 0 to 1; a row without contrast becomes 0."""
    low, high = maps.amin(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows of a side begin so that they cover a length; the last one ends with it.

    Args:
        length: to be covered, in patches.
        side: of a window, in patches.
        stride: between two windows, in patches.

    Returns:
        The first patch of each window, ascending.
    """
    last = max(0, length - side)
    return [*range(0, last, stride), last]


def windows_of(grid: tuple[int, int], side: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns, in patches, of the square windows that cover a grid; cut to it where it is smaller.

    Args:
        grid: rows and columns of patches.
        side: of a window, in patches.
        stride: between two windows, in patches.

    Returns:
        Slices of rows and of columns, window after window, row by row.
    """
    for top in window_starts(grid[0], side, stride):
        for left in window_starts(grid[1], side, stride):
            yield slice(top, min(top + side, grid[0])), slice(left, min(left + side, grid[1]))
