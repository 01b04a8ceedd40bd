"""The actor class that holds a trained segmenter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows
from fmwsss.cluster.models.device import use_threads
from fmwsss.cluster.models.segmenters import SegmenterSpec, load_segmenter
from fmwsss.cluster.replicas.pixels import pixels_of
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.images import encode_label_png
from fmwsss.core.schemas import PREDICTIONS, maps_to_bytes

PREDICTIONS_PAYLOAD = [field for field in PREDICTIONS if field.name != "image_id"]


class SegmenterReplica:
    """A trained segmenter that stays in memory and turns decoded images into labels and probabilities.

    Args:
        spec: of the segmenter.
        folder: of its weights.
        scales, flip: see `fmwsss.core.segmenter.inference.probabilities`.
        restrict: whether only the image's own classes (and background) are possible: for images that have labels.
        stage: for the failures table.
        num_threads: of torch.
    """

    def __init__(
        self,
        spec: SegmenterSpec,
        folder: Folder,
        scales: tuple[float, ...],
        flip: bool,
        restrict: bool,
        stage: str,
        num_threads: int,
    ) -> None:
        use_threads(num_threads)
        self.segmenter, self.spec = load_segmenter(folder, spec), spec
        self.scales, self.flip, self.restrict, self.stage = scales, flip, restrict, stage

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED_PAYLOAD rows in, PREDICTIONS_PAYLOAD rows out."""
        return map_rows(block, self._predict, PREDICTIONS_PAYLOAD, self.stage)

    def _predict(self, row: dict[str, Any]) -> dict[str, Any]:
        from fmwsss.core.segmenter.inference import probabilities, to_grid

        values = probabilities(self.segmenter, pixels_of(row), self.spec.short_side_px, self.scales, self.flip)
        if self.restrict:
            possible = [0] + [self.spec.class_names.index(name) for name in row["classes"]]
            absent = [index for index in range(len(values)) if index not in possible]
            values[absent] = 0
            values = values / values.sum(0).clamp(min=1e-6)
        confidence, winner = values.max(0)
        labels = winner.cpu().numpy().astype(np.uint8)
        classes = sorted({0, *np.unique(labels).tolist()})
        grid = to_grid(values[classes])
        return {
            "height_px": row["height_px"],
            "width_px": row["width_px"],
            "labels": encode_label_png(labels),
            "classes": [self.spec.class_names[index] for index in classes if index],
            "mean_confidence": float(confidence.mean()),
            "grid_height": grid.shape[1],
            "grid_width": grid.shape[2],
            "probabilities": maps_to_bytes(grid),
        }
