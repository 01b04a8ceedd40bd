"""A label map as single things: what of one class touches is told apart by superpixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from fmwsss.core.labels import IGNORE
from fmwsss.core.superpixels.masks import Superpixels

MIN_INSIDE = 0.8  # of a superpixel, that must lie in a region to be a thing of it
MIN_SHARE = 0.05  # of a region, that a thing of it has at least
MAX_OVERLAP = 0.1  # of a superpixel with things that were taken before


def instances_of(
    labels: UInt8[np.ndarray, "height width"],
    superpixels: Superpixels | None = None,
    superpixel_class: Sequence[int] | None = None,
) -> Iterator[tuple[int, Bool[np.ndarray, "height width"]]]:
    """The things of a label map: every pixel of a class is in exactly one of them.

    A connected region of one class is one thing, unless superpixels of that class lie in it: then the largest of them
    that do not overlap are a thing each, and the rest of the region goes to the nearest.

    Args:
        labels: class indices; 0 is background, 255 is ignored.
        superpixels: of the image; None takes regions as they are.
        superpixel_class: class index of each superpixel.

    Yields:
        Class index and mask of each thing, by class, then from the top down.
    """
    kinds = list(superpixel_class) if superpixels is not None and superpixel_class is not None else []
    for index in sorted(set(np.unique(labels).tolist()) - {0, IGNORE}):
        regions, _ = ndimage.label(labels == index)  # type: ignore[misc]
        own = [superpixels.mask(i) for i, kind in enumerate(kinds) if kind == index] if superpixels else []
        own.sort(key=lambda mask: -int(mask.sum()))
        areas = [int(mask.sum()) for mask in own]
        # In the box of each region: there may be thousands of small ones in a large image.
        for number, box in enumerate(ndimage.find_objects(regions), start=1):
            masks = [(mask[box], area) for mask, area in zip(own, areas, strict=True)]
            for thing in _things_of(regions[box] == number, masks):
                whole = np.zeros(labels.shape, bool)
                whole[box] = thing
                yield index, whole


def _things_of(
    region: Bool[np.ndarray, "height width"], masks: Sequence[tuple[Bool[np.ndarray, "height width"], int]]
) -> list[Bool[np.ndarray, "height width"]]:
    taken: list[np.ndarray] = []
    covered = np.zeros_like(region)
    area = int(region.sum())
    for mask, num_all in masks:
        inside = mask & region
        num_inside = int(inside.sum())
        if num_inside < max(MIN_INSIDE * num_all, MIN_SHARE * area, 1):
            continue
        if int((inside & covered).sum()) > MAX_OVERLAP * num_inside:
            continue
        taken.append(inside & ~covered)
        covered |= inside
    if len(taken) < 2:
        return [region]
    owners = np.zeros(region.shape, np.int32)
    for number, mask in enumerate(taken, start=1):
        owners[mask] = number
    nearest = ndimage.distance_transform_edt(owners == 0, return_distances=False, return_indices=True)
    assert nearest is not None
    owners = np.where(region, owners[tuple(nearest)], 0)
    return [owners == number for number in range(1, len(taken) + 1)]
