"""Segmentation quality against ground truth: one confusion matrix over a whole list of images (method M6)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from scipy import ndimage

from fmwsss.core.errors import InputError
from fmwsss.core.labels import IGNORE

BOUNDARY_SHARE = 0.02  # width of a boundary, as a share of the image's diagonal


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
        raise InputError(f"Labels have shape {labels.shape} and the ground truth {truth.shape}; they must be equal.")
    for name, values in (("Labels", labels), ("The ground truth", truth)):
        strange = values[(values >= num_classes) & (values != IGNORE)]
        if strange.size:
            raise InputError(f"{name}: class {strange[0]} is not one of 0 to {num_classes - 1}, nor 255.")
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


def pixel_accuracy(confusion: Int64[np.ndarray, "classes classes+1"]) -> float:
    """The share of judged pixels whose class is right; nan if there are none."""
    total = confusion.sum()
    return float(np.trace(confusion[:, :-1]) / total) if total else float("nan")


def boundary_counts(
    labels: UInt8[np.ndarray, "height width"], truth: UInt8[np.ndarray, "height width"], num_classes: int
) -> Int64[np.ndarray, "{num_classes} 3"]:
    """What Boundary IoU (Cheng et al. 2021) is made of: pixels in both boundaries, in the true, in the predicted one.

    The boundary of a class is what erosion by a 3 x 3 square, BOUNDARY_SHARE of the diagonal deep, takes away from its
    mask; beyond the image there is nothing. Pixels whose truth is 255 are taken out of both masks first. Counts of
    several images add up.

    Args:
        labels: predicted classes, 255 = none.
        truth: true classes, 255 = ignored.
        num_classes: background included.
    """
    depth_px = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
    judged = truth != IGNORE
    counts = np.zeros((num_classes, 3), dtype=np.int64)
    for index in np.union1d(labels, truth).tolist():
        if index < num_classes:
            true = _boundary(truth == index, depth_px)
            predicted = _boundary((labels == index) & judged, depth_px)
            counts[index] = (true & predicted).sum(), true.sum(), predicted.sum()
    return counts


def boundary_iou(counts: Int64[np.ndarray, "classes 3"]) -> float:
    """Mean over the classes in the truth of the boundaries' intersection over union; nan if there is none."""
    both, true, predicted = counts[counts[:, 1] > 0].T
    return float(np.mean(both / (true + predicted - both))) if len(both) else float("nan")


def _boundary(mask: Bool[np.ndarray, "height width"], depth_px: int) -> Bool[np.ndarray, "height width"]:
    # Erosion by squares takes away what is no farther from the outside than their number, by the greater of both axes.
    depth = np.asarray(ndimage.distance_transform_cdt(np.pad(mask, 1), metric="chessboard"))
    return mask & (depth[1:-1, 1:-1] <= depth_px)
