"""Bilinear resize of class maps in numpy (align_corners False)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int

_CACHED = 1 << 16  # numbers


def upsample(
    maps: Float32[np.ndarray, "maps grid_height grid_width"], height: int, width: int
) -> Float32[np.ndarray, "maps {height} {width}"]:
    """Bilinear resize, as torch's `interpolate(..., mode="bilinear", align_corners=False)`.

    Args:
        maps: values on a grid.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        The enlarged maps, float32, column by column in memory.
    """
    enlarged = np.empty((len(maps), width, height), dtype=np.float32)
    for values, out in zip(maps, enlarged, strict=True):
        _enlarge(values, out)
    return enlarged.transpose(0, 2, 1)


def _enlarge(values: Float32[np.ndarray, "grid_height grid_width"], out: Float32[np.ndarray, "width height"]) -> None:
    # Columns first and last in memory: masks are column-major.
    low, high, weight = _neighbours(values.shape[0], out.shape[1])
    columns = values.T[:, low] * (1 - weight) + values.T[:, high] * weight
    low, high, weight = _neighbours(values.shape[1], out.shape[0])
    # So many columns at a time as a processor's cache holds.
    step = max(1, _CACHED // out.shape[1])
    for begin in range(0, len(out), step):
        band = slice(begin, begin + step)
        np.multiply(columns[low[band]], (1 - weight[band])[:, None], out=out[band])
        out[band] += columns[high[band]] * weight[band, None]


def _neighbours(
    size_in: int, size_out: int
) -> tuple[Int[np.ndarray, " out"], Int[np.ndarray, " out"], Float32[np.ndarray, " out"]]:
    """The two source positions of each target position, and the weight of the second; float32 as in torch."""
    scale = np.float32(size_in) / np.float32(size_out)
    position = np.maximum((np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), size_in - 1)
    return low, np.minimum(low + 1, size_in - 1), np.clip(position - low.astype(np.float32), 0, 1)
