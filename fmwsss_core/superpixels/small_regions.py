"""Cleaning masks: small holes and small islands, by the rule of segment-anything's `remove_small_regions`.

Regions are found among the pieces of the run lengths, of all masks of an image at once: no mask is decoded.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64
from scipy import sparse
from scipy.sparse import csgraph

from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.rle import Runs, cut_by_column, merge_runs


def clean_superpixels(
    superpixels: Superpixels, min_area_px: int
) -> tuple[Superpixels, Bool[np.ndarray, " superpixels"]]:
    """Fills every mask's small holes, then removes its small islands (both 8-connected).

    A region is small if it has fewer than min_area_px pixels. A hole is any region of the mask's complement, also one
    at the image's edge. If every island is small the largest stays, of equals the first in reading order.

    Args:
        superpixels: of one image.
        min_area_px: smallest region that stays as it is.

    Returns:
        the cleaned superpixels, and which of them had no small region.
    """
    height, width = superpixels.height_px, superpixels.width_px
    untouched = np.ones(len(superpixels), dtype=bool)
    inside = superpixels.runs

    holes = cut_by_column(_outside(inside, len(superpixels), height * width), height)
    region, area_px = _regions(holes, height, width)
    small = (area_px < min_area_px)[region]
    untouched[holes.owner[small]] = False
    filled = merge_runs([inside, holes.select(small)]) if small.any() else inside

    islands = cut_by_column(filled, height)
    region, area_px = _regions(islands, height, width)
    small = area_px < min_area_px
    untouched[islands.owner[small[region]]] = False
    if untouched.all():
        return superpixels, untouched
    small[_to_spare(islands, region, area_px, small, height, width)] = False
    cleaned = merge_runs([islands.select(~small[region])])
    scores = superpixels.level, superpixels.predicted_iou, superpixels.stability
    return Superpixels.from_runs(height, width, *scores, cleaned), untouched


def _outside(runs: Runs, num_masks: int, num_pixels: int) -> Runs:
    """The complement: from the start or a run's end to the next run's start or the end."""
    owner = np.concatenate([runs.owner, np.arange(num_masks)])
    owner.sort(kind="stable")
    bounds = np.searchsorted(runs.owner, np.arange(num_masks + 1))
    start, stop = np.insert(runs.stop, bounds[:-1], 0), np.insert(runs.start, bounds[1:], num_pixels)
    return Runs(owner, start, stop).select(stop > start)


def _regions(
    pieces: Runs, height: int, width: int
) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " regions"]]:
    """The 8-connected region of every piece of a column, and the pixels of each region."""
    column, top = np.divmod(pieces.start, height)
    bottom = top + pieces.stop - pieces.start  # exclusive
    # One axis for all columns of all masks, an unused column behind each mask and two unused rows below each column.
    base = (pieces.owner * (width + 1) + column) * (height + 2)
    # In the next column: from the first piece that does not end above this one to the last that does not begin below.
    first = np.searchsorted(base + bottom, base + height + 2 + top, side="left")
    last = np.searchsorted(base + top, base + height + 2 + bottom, side="right")
    num_touching = np.maximum(last - first, 0)
    right = np.arange(num_touching.sum()) + np.repeat(first - np.cumsum(num_touching) + num_touching, num_touching)
    ends = np.concatenate([[0], np.cumsum(num_touching)])
    graph = sparse.csr_array((np.ones(len(right)), right, ends), shape=(len(base), len(base)))
    num_regions, region = csgraph.connected_components(graph, directed=False)
    area_px = np.bincount(region, weights=bottom - top, minlength=num_regions).astype(np.int64)
    return region.astype(np.int64), area_px


def _to_spare(
    pieces: Runs,
    region: Int64[np.ndarray, " pieces"],
    area_px: Int64[np.ndarray, " regions"],
    small: Bool[np.ndarray, " regions"],
    height: int,
    width: int,
) -> Int64[np.ndarray, " spared"]:
    """Of masks whose regions are all small: the largest, of equals the first in reading order."""
    owner = np.zeros(len(area_px), dtype=np.int64)
    owner[region] = pieces.owner
    column, top = np.divmod(pieces.start, height)
    first_pixel = np.full(len(area_px), height * width)
    np.minimum.at(first_pixel, region, top * width + column)
    has_large = np.isin(owner, owner[~small])
    ranked = np.lexsort((first_pixel, -area_px, owner))
    ranked = ranked[~has_large[ranked]]
    _, firsts = np.unique(owner[ranked], return_index=True)
    return ranked[firsts]
