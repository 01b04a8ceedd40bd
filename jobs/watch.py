"""What a training segmenter shows while it trains: TensorBoard curves and pictures, and mIoU on images set apart."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from cluster.ledger import Run
from fmwsss_core.images import decode_label_png, decode_rgb
from fmwsss_core.metrics import confusion_matrix, mean_iou
from fmwsss_core.segmenter.base import Segmenter
from fmwsss_core.segmenter.inference import probabilities
from jobs.crops import CropBatch
from jobs.panels import with_labels

TENSORBOARD = "tensorboard"
NUM_PICTURES = 4


class TrainingLog:
    """TensorBoard files of one start of a training; kept on this machine and copied into the run now and then.

    Args:
        run: the run folder.
        stage: whose folder gets `tensorboard/`.
        first: the iteration of this start, which names its file.
    """

    def __init__(self, run: Run, stage: str, first: int) -> None:
        self._folder = run.folder.child(stage).child(TENSORBOARD)
        # A file's usual name has the machine's name in it.
        self._name = f"events.out.tfevents.{first:08d}"
        self._directory = tempfile.mkdtemp()
        self._writer = SummaryWriter(self._directory, write_to_disk=True)

    def scalars(self, entry: dict[str, float]) -> None:
        """One line of the history."""
        for name, value in entry.items():
            if name != "iteration":
                self.scalar(name, value, int(entry["iteration"]) + 1)

    def scalar(self, name: str, value: float, done: int) -> None:
        """One value after `done` iterations."""
        self._writer.add_scalar(name, value, done)

    def pictures(self, done: int, segmenter: Segmenter, batch: CropBatch) -> None:
        """Crops of a batch, their labels, and what the segmenter says of them; leaves it in training mode."""
        segmenter.eval()
        device = next(segmenter.parameters()).device
        with torch.no_grad():
            scores = segmenter.scores(batch.images[:NUM_PICTURES].to(device))
        segmenter.train()
        said = scores.argmax(1).to(torch.uint8).cpu().numpy()
        rows = [
            np.concatenate([image, with_labels(image, labels), with_labels(image, own)], axis=1)
            for image, labels, own in zip(
                batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy(), said, strict=False
            )
        ]
        self._writer.add_image("crop-label-prediction", np.concatenate(rows), done, dataformats="HWC")

    def upload(self) -> None:
        """Copies what is written so far into the run."""
        self._writer.flush()
        for path in Path(self._directory).iterdir():
            self._folder.write(self._name, path.read_bytes())

    def close(self) -> None:
        """Copies everything and forgets the files of this machine."""
        self._writer.close()
        self.upload()
        shutil.rmtree(self._directory, ignore_errors=True)


def validation_miou(segmenter: Segmenter, run: Run, short_side_px: int) -> float:
    """mIoU on all images of a run that have truth, at one scale; leaves the segmenter in evaluation mode."""
    segmenter.eval()
    counts = np.zeros((segmenter.num_classes, segmenter.num_classes + 1), np.int64)
    images = run.receipt("images")
    assert images is not None
    for part in images.parts:
        for row in run.folder.child("images").read_table(part, columns=["image", "truth"]).to_pylist():
            if row["truth"] is not None:
                values = probabilities(segmenter, decode_rgb(row["image"], max_pixels=2**62), short_side_px)
                labels: UInt8[np.ndarray, "height width"] = values.argmax(0).to(torch.uint8).cpu().numpy()
                counts += confusion_matrix(labels, decode_label_png(row["truth"]), segmenter.num_classes)
    return mean_iou(counts)
