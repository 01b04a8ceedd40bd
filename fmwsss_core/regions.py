"""Cleaning masks: small holes and small islands, by the rule of segment-anything's `remove_small_regions`.

Regions are found among the pieces of the run lengths, of all masks of an image at once: no mask is decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from pycocotools import mask as coco
from scipy import sparse
from scipy.sparse import csgraph

from fmwsss_core.superpixels import Runs, Superpixels


def clean_superpixels(
    superpixels: Superpixels, min_area_px: int
) -> tuple[tuple[bytes, ...], Bool[np.ndarray, " superpixels"]]:
    """Fills every mask's small holes, then removes its small islands (both 8-connected).

    A region is small if it has fewer than min_area_px pixels. A hole is any region of the mask's complement, also one
    at the image's edge. If every island is small the largest stays, of equals the first in reading order.

    Returns:
        the run lengths of the cleaned masks, and which masks had no small region.
    """
    height, width = superpixels.height_px, superpixels.width_px
    untouched = np.ones(len(superpixels), dtype=bool)
    inside = superpixels.runs

    holes = _by_column(_outside(inside, len(superpixels), height * width), height)
    region, area_px = _regions(holes, height, width)
    small = (area_px < min_area_px)[region]
    untouched[holes.owner[small]] = False
    filled = _merged([inside, holes.select(small)])

    islands = _by_column(filled, height)
    region, area_px = _regions(islands, height, width)
    small = area_px < min_area_px
    untouched[islands.owner[small[region]]] = False
    small[_to_spare(islands, region, area_px, small, height, width)] = False
    cleaned = _merged([islands.select(~small[region])])

    rle = list(superpixels.rle)
    for index in np.flatnonzero(~untouched):
        rle[index] = _encoded(cleaned.select(cleaned.owner == index), height, width)
    return tuple(rle), untouched


def _outside(runs: Runs, num_masks: int, num_pixels: int) -> Runs:
    """The complement: from the start or a run's end to the next run's start or the end."""
    owners = np.arange(num_masks)
    owner = np.concatenate([runs.owner, owners])
    start = np.concatenate([runs.stop, np.zeros_like(owners)])
    stop = np.concatenate([runs.start, np.full_like(owners, num_pixels)])
    owner, start, stop = np.sort(owner), start[np.lexsort((start, owner))], stop[np.lexsort((stop, owner))]
    return Runs(owner, start, stop).select(stop > start)


def _by_column(runs: Runs, height: int) -> Runs:
    """Runs cut where a column ends."""
    num_columns = (runs.stop - 1) // height - runs.start // height + 1
    which = np.repeat(np.arange(len(runs.start)), num_columns)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(num_columns) - num_columns, num_columns)
    column_start = (runs.start[which] // height + nth) * height
    start = np.maximum(runs.start[which], column_start)
    return Runs(runs.owner[which], start, np.minimum(runs.stop[which], column_start + height))


def _merged(parts: list[Runs]) -> Runs:
    """Disjoint runs as one list, those that touch joined."""
    owner, start, stop = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.lexsort((start, owner))
    owner, start, stop = owner[order], start[order], stop[order]
    begins = np.ones(len(owner), dtype=bool)
    begins[1:] = (owner[1:] != owner[:-1]) | (start[1:] != stop[:-1])
    ends = np.append(begins[1:], True)[: len(begins)]
    return Runs(owner[begins], start[begins], stop[ends])


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
    left = np.repeat(np.arange(len(base)), num_touching)
    right = np.arange(len(left)) + np.repeat(first - np.cumsum(num_touching) + num_touching, num_touching)
    graph = sparse.coo_array((np.ones(len(left), bool), (left, right)), shape=(len(base), len(base)))
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


def _encoded(runs: Runs, height: int, width: int) -> bytes:
    bounds = np.stack([runs.start, runs.stop], axis=1).ravel()
    counts = np.diff(bounds, prepend=0, append=height * width).tolist()
    if len(counts) > 1 and counts[-1] == 0:  # as pycocotools writes it
        counts.pop()
    encoded: Any = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return encoded["counts"]
