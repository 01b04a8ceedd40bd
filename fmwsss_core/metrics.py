"""Segmentation quality against ground truth: one confusion matrix over a whole list of images (method M6)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt8

IGNORE = 255


def confusion_matrix(
    labels: UInt8[np.ndarray, "*labels_shape"], truth: UInt8[np.ndarray, "*truth_shape"], num_classes: int
) -> Int64[np.ndarray, "{num_classes} {num_classes}+1"]:
    """Counts pixels by true class (row) and predicted class (column). Matrices of several images add up.

    Pixels whose truth is 255 are left out. A pixel predicted as 255 goes into the last column: a miss of its true
    class, and a false positive of none, so that writing 255 can never raise a score.

    Args:
        labels: predicted classes, 0 = background, 255 = none.
        truth: true classes, 255 = ignored.
        num_classes: background included (21 for VOC, 81 for COCO).

    Raises:
        ValueError: the shapes differ, or a value is neither a class nor 255.
    """
    if labels.shape != truth.shape:
        raise ValueError(f"Labels have shape {labels.shape} and the ground truth {truth.shape}; they must be equal.")
    for name, values in (("Labels", labels), ("The ground truth", truth)):
        strange = values[(values >= num_classes) & (values != IGNORE)]
        if strange.size:
            raise ValueError(f"{name}: class {strange[0]} is not one of 0 to {num_classes - 1}, nor 255.")
    judged = truth != IGNORE
    rows = truth[judged].astype(np.int64)
    columns = np.minimum(labels[judged], num_classes).astype(np.int64)
    counts = np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1).astype(np.int64)


def iou_per_class(confusion: Int64[np.ndarray, "classes classes+1"]) -> Float64[np.ndarray, " classes"]:
    """Intersection over union of each class, 0 to 1; nan for a class that is not in the ground truth."""
    hits = np.diagonal(confusion).astype(np.float64)
    truths, predictions = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    return np.divide(hits, truths + predictions - hits, out=np.full(len(hits), np.nan), where=truths > 0)


def mean_iou(confusion: Int64[np.ndarray, "classes classes+1"]) -> float:
    """Mean of `iou_per_class` over the classes in the ground truth, background included; nan if there is none."""
    ious = iou_per_class(confusion)
    return float(np.mean(ious[~np.isnan(ious)])) if np.any(~np.isnan(ious)) else float("nan")
