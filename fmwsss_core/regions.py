"""Cleaning masks: small holes and small islands, by the rule of segment-anything's `remove_small_regions`."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage


def clean_mask(
    mask: Bool[np.ndarray, "height width"], min_area_px: int
) -> tuple[Bool[np.ndarray, "height width"], bool]:
    """Fills the mask's small holes, then removes its small islands (both 8-connected).

    A region is small if it has fewer than min_area_px pixels. A hole is any region of the mask's complement, also one
    at the image's edge. If every island is small the largest stays, of equals the first in reading order.

    Returns:
        the cleaned mask, and whether the mask had any small region.
    """
    holes, area_px = _regions(~mask)
    small_holes = area_px < min_area_px
    filled = mask | small_holes[holes] if small_holes.any() else mask

    islands, area_px = _regions(filled)
    small_islands = area_px < min_area_px
    if not small_islands.any():
        return filled, bool(small_holes.any())
    stays = ~small_islands
    stays[0] = False
    if not stays.any():
        stays[1 + np.argmax(area_px[1:])] = True
    return stays[islands], True


def _regions(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Int[np.ndarray, "height width"], Int[np.ndarray, " numbers"]]:
    """8-connected regions numbered from 1 in reading order (0 = outside the mask), and the pixels of each.

    What lies outside the mask is given the largest number there is, so that it never counts as small.
    """
    regions = np.zeros(mask.shape, dtype=np.int32)
    # ndimage numbers in the order of memory; a column-major mask would be numbered by columns.
    ndimage.label(np.ascontiguousarray(mask), structure=np.ones((3, 3)), output=regions)
    area_px = np.bincount(regions.ravel())
    area_px[0] = np.iinfo(area_px.dtype).max
    return regions, area_px
