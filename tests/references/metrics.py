"""Intersection over union by its definition, pixel by pixel and class by class."""

from __future__ import annotations

import math

import numpy as np


def iou_per_class(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[float]:
    """`pairs` of (labels, truth). Truth 255 is left out; a label 255 is a miss and nothing else."""
    ious = []
    for index in range(num_classes):
        intersection = union = in_truth = 0
        for labels, truth in pairs:
            for label, true in zip(labels.flat, truth.flat, strict=True):
                if true == 255:
                    continue
                in_truth += true == index
                intersection += label == index and true == index
                union += label == index or true == index
        ious.append(intersection / union if in_truth else math.nan)
    return ious


def boundary_counts(labels: np.ndarray, truth: np.ndarray, num_classes: int, depth_px: int) -> list[list[int]]:
    """Pixels in both boundaries, in the true and in the predicted one, of each class, pixel by pixel.

    A pixel of a mask is in its boundary if anything outside the mask, or of the outside of the image, is at most
    `depth_px` rows and columns away. Pixels whose truth is 255 are in no mask.
    """
    height, width = truth.shape

    def boundary(mask: np.ndarray) -> np.ndarray:
        found = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                near = [
                    (i, j) for i in range(y - depth_px, y + depth_px + 1) for j in range(x - depth_px, x + depth_px + 1)
                ]
                outside = any(not (0 <= i < height and 0 <= j < width) or not mask[i, j] for i, j in near)
                found[y, x] = mask[y, x] and outside
        return found

    counts = []
    for index in range(num_classes):
        true, predicted = boundary(truth == index), boundary((labels == index) & (truth != 255))
        counts.append([int((true & predicted).sum()), int(true.sum()), int(predicted.sum())])
    return counts
