"""What a training segmenter shows while it trains: pictures for TensorBoard, and mIoU on images set apart."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.overlays import with_labels
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.core.segmenter.inference import probabilities
from fmwsss.jobs.segmenter.crops import CropBatch

NUM_PICTURES = 4


def pictures(segmenter: Segmenter, batch: CropBatch) -> UInt8[np.ndarray, "height width 3"]:
    """Crops of a batch, their labels, and what the segmenter says of them, a row each; leaves it in training mode.

    Args:
        segmenter: in training.
        batch: crops.

    Returns:
        RGB.
    """
    segmenter.eval()
    device = next(segmenter.parameters()).device
    with torch.no_grad():
        scores = segmenter.scores(batch.images[:NUM_PICTURES].to(device))
    segmenter.train()
    said = scores.argmax(1).to(torch.uint8).cpu().numpy()
    images = batch.images.permute(0, 2, 3, 1).numpy()
    rows = [
        np.concatenate([image, with_labels(image, labels), with_labels(image, own)], axis=1)
        for image, labels, own in zip(images, batch.labels.numpy(), said, strict=False)
    ]
    return np.concatenate(rows)


def validation_miou(segmenter: Segmenter, run: Run, short_side_px: int) -> float:
    """mIoU on all images of a run that have truth, at one scale; leaves the segmenter in evaluation mode.

    Args:
        segmenter: in training.
        run: of the validation images.
        short_side_px: that images are resized to.

    Returns:
        0 to 1.
    """
    segmenter.eval()
    counts = np.zeros((segmenter.num_classes, segmenter.num_classes + 1), np.int64)
    images = run.receipt("images")
    assert images is not None
    for part in images.parts:
        for row in run.read_part("images", part, columns=["image", "truth"]).to_pylist():
            if row["truth"] is not None:
                values = probabilities(segmenter, decode_rgb(row["image"], max_pixels=UNLIMITED), short_side_px)
                labels: UInt8[np.ndarray, "height width"] = values.argmax(0).to(torch.uint8).cpu().numpy()
                counts += confusion_matrix(labels, decode_label_png(row["truth"]), segmenter.num_classes)
    return mean_iou(counts)
