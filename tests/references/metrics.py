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
