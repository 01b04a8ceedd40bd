"""Seeding by the equations (method M5.2), one superpixel, one class and one pixel at a time."""

from __future__ import annotations

import numpy as np


def scaled_to_image(maps: np.ndarray) -> np.ndarray:
    scaled = np.zeros(maps.shape)
    for column, values in enumerate(maps):
        rectified = np.maximum(values, 0).astype(float)
        if rectified.max() > 0 and (rectified.max() - rectified.min()) / rectified.max() > 1e-6:
            scaled[column] = (rectified - rectified.min()) / (rectified.max() - rectified.min())
    return scaled


def superpixel_scores(masks: np.ndarray, maps: np.ndarray, alpha: float) -> np.ndarray:
    """`maps` already upsampled; background first."""
    if len(masks) == 0:
        return np.zeros((0, 1 + len(maps)))
    scaled = scaled_to_image(maps)
    scores = np.zeros((len(masks), 1 + len(maps)))
    for column, values in enumerate(scaled):
        means = [values[mask].mean() for mask in masks]
        spread = max(means) - min(means)
        for row, mean in enumerate(means):
            scores[row, 1 + column] = mean if spread < 1e-6 else (mean - min(means)) / (spread + 1e-7)
    for row in range(len(masks)):
        scores[row, 0] = (1 - max(scores[row, 1:], default=0)) ** alpha
    return scores


def labels(masks: np.ndarray, level: np.ndarray, scores: np.ndarray, class_indices: list[int]) -> np.ndarray:
    """Paints the scores given (one row for each superpixel): each pixel looks for its superpixel."""
    classes = [0, *class_indices]
    painted = np.zeros(masks.shape[1:], dtype=np.uint8)
    for position in np.ndindex(*painted.shape):
        best = None
        for row in range(len(masks)):
            if masks[row][position]:
                # On equal level and score the first superpixel wins.
                rank = (level[row], scores[row].max(), -row)
                if best is None or rank > best[0]:
                    best = (rank, row)
        if best is not None:
            row_scores = list(scores[best[1]])
            painted[position] = classes[row_scores.index(max(row_scores))]
    return painted
