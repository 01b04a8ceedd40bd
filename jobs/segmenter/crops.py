"""The crops that a segmenter is trained on, drawn by Ray Data tasks on any node."""

from __future__ import annotations

from collections.abc import Generator, Iterator
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
from fmwsss.jobs.training.sampling import batches_per_epoch, places, windows

if TYPE_CHECKING:
    from torch import Tensor

    from fmwsss.core.segmenter.crop_settings import CropSettings
    from fmwsss.core.segmenter.crops import Crop

ROWS_AT_ONCE = 8
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
class CropSource:
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
    """

    run: Run
    parts: tuple[str, ...]
    part_rows: tuple[int, ...]
    labels: tuple[str, str]
    weighted: bool
    batch_size: int
    settings: CropSettings
    random_seed: int

    @property
    def num_images(self) -> int:
        """Images that can be learned from."""
        return sum(self.part_rows)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch, at least one (`sampling.batches_per_epoch`)."""
        return batches_per_epoch(self.num_images, self.batch_size)

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
        # Not above: training steps run where there is no Ray too.
        from fmwsss.cluster.execution.shard_pipeline import stream_shards

        share = len(range(rank, min(self.batch_size, self.num_images), num_workers))
        shards = list(windows(self.parts, self.part_rows, self.batch_size, self.random_seed, first, last))
        arguments = {"source": self, "first": first, "last": last, "rank": rank, "num_workers": num_workers}
        num_tasks = min(num_tasks, MAX_TASKS)
        for table in stream_shards(shards, draw_window, arguments, share, num_tasks) if shards else ():
            yield self._batch(table)

    def _batch(self, table: pa.Table) -> CropBatch:
        side = self.settings.crop_px
        return CropBatch(
            images=stacked(table["image"], 3, side, side),
            labels=stacked(table["labels"], side, side),
            weights=stacked(table["weights"], side, side).float() / 255 if self.weighted else None,
            image_ids=tuple(table["image_id"].to_pylist()),
            random_seeds=tuple(table["random_seed"].to_pylist()),
        )


def draw_window(
    block: pa.Table, source: CropSource, first: int, last: int, rank: int, num_workers: int
) -> Iterator[pa.Table]:
    """A block that names one window in, one worker's crops of its batches out, in order (rows of DRAWN).

    Args:
        block: of one row.
        source: what batches are drawn of.
        first: number of the first batch.
        last: number after the last one.
        rank: of the worker.
        num_workers: of the process group.

    Returns:
        Tables of this worker's share, in the order of the batches.
    """
    (window,) = block.to_pylist()
    rows = [row for part in window["parts"] for row in _read_part(source, part)]
    mine = places(
        window, len(rows), source.num_images, source.batch_size, source.random_seed, first, last, rank, num_workers
    )
    for begin in range(0, len(mine), ROWS_AT_ONCE):
        drawn = [_draw(source, rows, row, batch) for batch, row in mine[begin : begin + ROWS_AT_ONCE]]
        yield pa.Table.from_pylist(drawn, schema=DRAWN)
    if not mine:
        yield DRAWN.empty_table()


def _read_part(source: CropSource, part: str) -> list[dict[str, Any]]:
    """What the crops of one part are drawn from; images without labels are left out."""
    run, (stage, column) = source.run, source.labels
    columns = ["image_id", column, *(["confidence"] if source.weighted else [])]
    labels = {row["image_id"]: row for row in run.read_part(stage, part, columns).to_pylist()}
    images = run.read_part("images", part, columns=["image_id", "image"]).to_pylist()
    return [
        {**row, "labels": labels[row["image_id"]][column], "confidence": labels[row["image_id"]].get("confidence")}
        for row in images
        if row["image_id"] in labels
    ]


def _draw(source: CropSource, rows: list[dict[str, Any]], index: int, batch: int) -> dict[str, Any]:
    """The crop of a row in a batch: a function of both and of the run's seed, not of who draws it or after what."""
    import torch

    from fmwsss.core.segmenter.crops import paste_class

    image_id, paste = rows[index]["image_id"], source.settings.paste
    key = (source.random_seed, batch, int.from_bytes(image_id.encode(), "little"))
    generator, of_paste = np.random.default_rng(key), np.random.default_rng((*key, 1))
    crop = _crop(source, rows[index], generator)
    if paste > 0 and len(rows) > 1 and of_paste.random() < paste:
        giver = rows[(index + 1 + int(of_paste.integers(len(rows) - 1))) % len(rows)]
        crop = paste_class(crop, _crop(source, giver, of_paste), of_paste)
    image, labels, weights = crop
    return {
        "image_id": image_id,
        "random_seed": int(generator.integers(2**62)),
        "image": image.numpy().tobytes(),
        "labels": labels.numpy().tobytes(),
        "weights": (weights * 255).round().to(torch.uint8).numpy().tobytes() if weights is not None else None,
    }


def _crop(source: CropSource, row: dict[str, Any], generator: np.random.Generator) -> Crop:
    from fmwsss.core.segmenter.crops import draw_crop

    confidence = np.array(Image.open(BytesIO(row["confidence"]))) if row["confidence"] else None
    image, labels = decode_rgb(row["image"], max_pixels=UNLIMITED), decode_label_png(row["labels"])
    return draw_crop(image, labels, confidence, generator, source.settings)
