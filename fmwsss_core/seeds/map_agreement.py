"""How well class maps follow superpixels: a measure of maps that needs neither labels nor truth."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int32

from fmwsss.core.superpixels.masks import Superpixels


def finest_regions(superpixels: Superpixels) -> Int32[np.ndarray, "height width"]:
    """The smallest superpixel that covers each pixel, numbered from 1; 0 where there is none."""
    regions = np.zeros((superpixels.height_px, superpixels.width_px), np.int32)
    masks = [superpixels.mask(i) for i in range(len(superpixels))]
    for number, mask in enumerate(sorted(masks, key=lambda mask: -int(mask.sum())), start=1):
        regions[mask] = number
    return regions


def explained_share(values: Float[np.ndarray, "height width"], regions: Int32[np.ndarray, "height width"]) -> float:
    """The part of a map's variance that lies between regions rather than inside them, 0 to 1 (eta squared).

    1: the map is constant in every region, so that a region's class can be read from it without loss. It does not
    depend on the map's scale; of a constant map it is 0.

    Args:
        values: a class map.
        regions: number of the region that each pixel is in, from 0.

    Returns:
        Between-region variance over total variance.
    """
    flat, region = values.reshape(-1).astype(np.float64), regions.reshape(-1)
    counts = np.bincount(region)
    means = np.bincount(region, flat) / np.maximum(counts, 1)
    total = float(np.square(flat - flat.mean()).sum())
    return float((counts * np.square(means - flat.mean())).sum() / total) if total > 0 else 0.0
