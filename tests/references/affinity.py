"""CAA (M2.2), one number at a time."""

from __future__ import annotations

import numpy as np


def box_mask(cam: np.ndarray, threshold: float) -> np.ndarray:
    """Flood fill over the 8 neighbours, then the box of each region."""
    height, width = cam.shape
    above = {(y, x) for y in range(height) for x in range(width) if cam[y, x] > threshold * cam.max()}
    mask = np.zeros(cam.shape, dtype=bool)
    while above:
        region, border = set(), [above.pop()]
        while border:
            y, x = border.pop()
            region.add((y, x))
            neighbours = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & above
            above -= neighbours
            border += neighbours
        ys, xs = [y for y, _ in region], [x for _, x in region]
        for y in range(min(ys), max(ys) + 1):
            for x in range(min(xs), max(xs) + 1):
                mask[y, x] = True
    return mask


def refine(
    attention: np.ndarray, cams: np.ndarray, grid: tuple[int, int], box_threshold, num_sinkhorn: int,
    box_on: str = "map", spread: np.ndarray | None = None,
):  # fmt: skip
    """Loops over rows and columns; one class after the other; the square of A written out."""
    w = attention.astype(np.float64).copy()
    n = len(w)
    for _ in range(num_sinkhorn):
        for j in range(n):
            w[:, j] = w[:, j] / sum(w[:, j])
        for i in range(n):
            w[i] = w[i] / sum(w[i])
    a = np.array([[(w[i, j] + w[j, i]) / 2 for j in range(n)] for i in range(n)])
    square = np.array([[sum(a[i, k] * a[k, j] for k in range(n)) for j in range(n)] for i in range(n)])
    refined = []
    for cam, own in zip(cams, cams if spread is None else spread, strict=True):
        mask = np.ones(n) if box_threshold is None else box_mask(cam.reshape(grid), box_threshold).ravel()
        if box_on == "map":
            refined.append([sum(square[i, j] * mask[j] * own[j] for j in range(n)) for i in range(n)])
        else:
            refined.append([mask[i] * sum(square[i, j] * own[j] for j in range(n)) for i in range(n)])
    return np.array(refined).reshape(len(cams), n)
