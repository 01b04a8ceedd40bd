"""Of stage `reports`, what is said of single images: `reports/images.parquet`, for `fmwsss view` and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from fmwsss.core.images import decode_label_png
from fmwsss.core.labels import IGNORE
from fmwsss.core.metrics import confusion_matrix, mean_iou

FIGURES_FILE = "images.parquet"
FIGURES = pa.schema(
    [
        ("image_id", pa.string()),
        ("area", pa.float32()),  # share of the pixels of the last seed that have a class
        ("disagreement", pa.float32()),  # share of the pixels where coarse and fine seed differ; null without both
        ("iou", pa.float32()),  # mean over the classes of seed and truth; null without ground truth
    ]
)


def figures_of(
    image_id: str,
    coarse: Mapping[str, Any] | None,
    fine: Mapping[str, Any] | None,
    truth: np.ndarray | None,
    num_classes: int,
) -> dict[str, Any] | None:
    """The row of FIGURES of an image; None where it has no seed.

    Args:
        image_id: of the image.
        coarse, fine: its rows of SEEDS.
        truth: class indices of its pixels.
        num_classes: with the background.
    """
    last = fine or coarse
    if last is None:
        return None
    labels = decode_label_png(last["seed"])
    differs = None
    if coarse is not None and fine is not None:
        first = decode_label_png(coarse["seed"])
        differs = float((first != labels).mean()) if first.shape == labels.shape else 1.0
    return {
        "image_id": image_id,
        "area": float(((labels != 0) & (labels != IGNORE)).mean()),
        "disagreement": differs,
        "iou": None if truth is None else mean_iou(confusion_matrix(labels, truth, num_classes)),
    }
