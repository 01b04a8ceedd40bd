"""The crops that a segmenter is trained on, drawn by Ray Data tasks on any node."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.jobs.training.arrow_tensors import stacked
from fmwsss.jobs.training.drawing import DrawnSource

if TYPE_CHECKING:
    from torch import Tensor

    from fmwsss.core.segmenter.crop_settings import CropSettings
    from fmwsss.core.segmenter.crops import Crop

MAX_TASKS = 4  # at work for one worker: some two hundred crops a second; more would wait, each with a window in memory

# One crop on its way from the task that drew it to the worker that learns from it.
DRAWN = pa.schema(
    [
        ("image_id", pa.string()),
        ("random_seed", pa.int64()),
        ("image", pa.binary()),
        ("labels", pa.binary()),
        ("weights", pa.binary()),  # 255 = 1; or null
    ]
)


@dataclass(frozen=True)
class CropBatch:
    """One worker's share of a batch.

    Attributes:
        images, labels, weights: see `fmwsss.core.segmenter.crops.draw_crop`.
        image_ids: where each comes from.
        random_seeds: for what the loss draws at random, one for each image.
    """

    images: UInt8[Tensor, "batch 3 crop crop"]
    labels: UInt8[Tensor, "batch crop crop"]
    weights: Float[Tensor, "batch crop crop"] | None
    image_ids: tuple[str, ...]
    random_seeds: tuple[int, ...]


@dataclass(frozen=True)
class CropSource(DrawnSource):
    """Where crops come from and how they are drawn; small and picklable.

    Attributes:
        run: its `images/` are read.
        parts: names of the parts of `images/`.
        part_rows: how many images of each have labels (`fmwsss.jobs.training.sampling.count_rows`).
        labels: the stage and the column of the label maps.
        weighted: whether the confidences of that stage come with them.
        batch_size: images of all workers together.
        settings: of the crops.
        random_seed: the run's.
        rejected: images that people rejected; nothing is learned from them.
    """

    run: Run
    parts: tuple[str, ...]
    part_rows: tuple[int, ...]
    labels: tuple[str, str]
    weighted: bool
    batch_size: int
    settings: CropSettings
    random_seed: int
    rejected: frozenset[str] = frozenset()
    schema = DRAWN
    rows_at_once = 8

    def batches(
        self, first: int, last: int, rank: int, num_workers: int, num_tasks: int = 1
    ) -> Generator[CropBatch, None, None]:
        """The share of worker `rank` in batches `first` to `last`, drawn by Ray Data tasks ahead of their use.

        Args:
            first: number of the first batch.
            last: number after the last one.
            rank: of this worker.
            num_workers: of the process group.
            num_tasks: parts at work at a time.

        Returns:
            A generator; closing it ends the tasks.
        """
        for table in self.tables(first, last, rank, num_workers, min(num_tasks, MAX_TASKS)):
            yield self._batch(table)

    def read_part(self, part: str, epoch: int) -> list[dict[str, Any]]:
        """See `DrawnSource`. Every epoch reads the same.

        Args:
            part: its name.
            epoch: counted from 0.
        """
        run, (stage, column) = self.run, self.labels
        columns = ["image_id", column, *(["confidence"] if self.weighted else [])]
        labels = {row["image_id"]: row for row in run.read_part(stage, part, columns).to_pylist()}
        images = run.read_part("images", part, columns=["image_id", "image"]).to_pylist()
        return [
            {**row, "labels": labels[row["image_id"]][column], "confidence": labels[row["image_id"]].get("confidence")}
            for row in images
            if row["image_id"] in labels and row["image_id"] not in self.rejected
        ]

    def draw(self, rows: list[dict[str, Any]], index: int, batch: int, epoch: int) -> dict[str, Any]:
        """See `DrawnSource`. In every batch an image has another crop.

        Args:
            rows: of the window.
            index: of the image in them.
            batch: that it is in.
            epoch: counted from 0.
        """
        import torch

        from fmwsss.core.segmenter.crops import paste_class

        image_id, paste = rows[index]["image_id"], self.settings.paste
        key = (self.random_seed, batch, int.from_bytes(image_id.encode(), "little"))
        generator, of_paste = np.random.default_rng(key), np.random.default_rng((*key, 1))
        crop = self._crop(rows[index], generator)
        if paste > 0 and len(rows) > 1 and of_paste.random() < paste:
            giver = rows[(index + 1 + int(of_paste.integers(len(rows) - 1))) % len(rows)]
            crop = paste_class(crop, self._crop(giver, of_paste), of_paste)
        image, labels, weights = crop
        return {
            "image_id": image_id,
            "random_seed": int(generator.integers(2**62)),
            "image": image.numpy().tobytes(),
            "labels": labels.numpy().tobytes(),
            "weights": (weights * 255).round().to(torch.uint8).numpy().tobytes() if weights is not None else None,
        }

    def _crop(self, row: dict[str, Any], generator: np.random.Generator) -> Crop:
        from fmwsss.core.segmenter.crops import draw_crop

        confidence = np.array(Image.open(BytesIO(row["confidence"]))) if row["confidence"] else None
        image, labels = decode_rgb(row["image"], max_pixels=UNLIMITED), decode_label_png(row["labels"])
        return draw_crop(image, labels, confidence, generator, self.settings)

    def _batch(self, table: pa.Table) -> CropBatch:
        side = self.settings.crop_px
        return CropBatch(
            images=stacked(table["image"], 3, side, side),
            labels=stacked(table["labels"], side, side),
            weights=stacked(table["weights"], side, side).float() / 255 if self.weighted else None,
            image_ids=tuple(table["image_id"].to_pylist()),
            random_seeds=tuple(table["random_seed"].to_pylist()),
        )
