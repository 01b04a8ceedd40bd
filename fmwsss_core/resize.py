"""Bilinear resize of class maps in numpy (align_corners False)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int


def upsample(
    maps: Float32[np.ndarray, "maps grid_height grid_width"], height: int, width: int
) -> Float32[np.ndarray, "maps {height} {width}"]:
    """Bilinear resize, as torch's `interpolate(..., mode="bilinear", align_corners=False)`."""
    # Columns first and last in memory: masks are column-major.
    low, high, weight = _neighbours(maps.shape[1], height)
    columns = maps.transpose(0, 2, 1)
    columns = columns[:, :, low] * (1 - weight) + columns[:, :, high] * weight
    low, high, weight = _neighbours(maps.shape[2], width)
    enlarged = columns[:, low]
    enlarged *= (1 - weight)[:, None]
    second = columns[:, high]
    second *= weight[:, None]
    enlarged += second
    return enlarged.transpose(0, 2, 1)


def _neighbours(
    size_in: int, size_out: int
) -> tuple[Int[np.ndarray, " out"], Int[np.ndarray, " out"], Float32[np.ndarray, " out"]]:
    """The two source positions of each target position, and the weight of the second; float32 as in torch."""
    scale = np.float32(size_in) / np.float32(size_out)
    position = np.maximum((np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), size_in - 1)
    return low, np.minimum(low + 1, size_in - 1), np.clip(position - low.astype(np.float32), 0, 1)
