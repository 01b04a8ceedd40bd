"""Superpixels by the definition: boolean masks, loops over pixels and pairs."""

from __future__ import annotations

import numpy as np


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    counts = np.zeros((len(first), len(second)), dtype=np.int64)
    for row, mask in enumerate(first):
        for column, other in enumerate(second):
            counts[row, column] = sum(1 for a, b in zip(mask.flat, other.flat, strict=True) if a and b)
    return counts


def occupation_filter(masks: np.ndarray, level: np.ndarray, threshold: float) -> list[int]:
    """Indices kept: all level 2, then level 1, then level 0, each against the single masks kept above it (M5.1)."""
    kept: list[int] = []
    for current in (2, 1, 0):
        above = list(kept)
        for index in range(len(masks)):
            if level[index] != current:
                continue
            area = masks[index].sum()
            shares = [(masks[index] & masks[other]).sum() / area for other in above]
            if max(shares, default=0.0) < threshold:
                kept.append(index)
    return sorted(kept)


def pooled_means(masks: np.ndarray, maps: np.ndarray) -> np.ndarray:
    means = np.zeros((len(masks), len(maps)))
    for row, mask in enumerate(masks):
        for column, values in enumerate(maps):
            inside = [float(value) for value, covered in zip(values.flat, mask.flat, strict=True) if covered]
            means[row, column] = sum(inside) / len(inside) if inside else 0.0
    return means


def box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
