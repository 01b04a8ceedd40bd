"""The crops that a segmenter is trained on: an order drawn from the seed of the run, whoever reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cluster.ledger import Run
from fmwsss_core.images import decode_label_png, decode_rgb
from fmwsss_core.segmenter.crops import Crop, CropSettings, draw_crop, paste_class

WINDOW_PARTS = 16  # rows are shuffled across this many parts at a time: memory is bounded at any size of the data set
CACHE_BYTES = 1 << 30
AHEAD = 2  # batches that are being made while one is used


@dataclass(frozen=True)
class CropBatch:
    """One worker's share of a batch.

    Attributes:
        images, labels, weights: see `fmwsss_core.segmenter.crops.draw_crop`.
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
        labels: the stage and the column of the label maps.
        weighted: whether the confidences of that stage come with them.
        batch_size: images of all workers together.
        settings: of the crops.
        random_seed: the run's.
    """

    run: Run
    parts: tuple[str, ...]
    labels: tuple[str, str]
    weighted: bool
    batch_size: int
    settings: CropSettings
    random_seed: int

    def batches(self, first: int, last: int, per_epoch: int, rank: int, num_workers: int) -> Iterator[CropBatch]:
        """The share of worker `rank` in batches `first` to `last`, made ahead of where they are used."""
        cache: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        with ThreadPoolExecutor(AHEAD) as pool:
            pending: list[Future[CropBatch]] = []
            for rows, iteration in self._row_batches(first, last, per_epoch, cache):
                pending.append(pool.submit(self._make, rows, range(rank, len(rows), num_workers), iteration))
                if len(pending) > AHEAD:
                    yield pending.pop(0).result()
            for future in pending:
                yield future.result()

    def _row_batches(
        self, first: int, last: int, per_epoch: int, cache: OrderedDict[str, list[dict[str, Any]]]
    ) -> Iterator[tuple[list[dict[str, Any]], int]]:
        for epoch in range(first // per_epoch, -(-last // per_epoch)):
            rows = self._epoch_rows(epoch, cache)
            for iteration in range(epoch * per_epoch, min(last, (epoch + 1) * per_epoch)):
                batch = list(islice(rows, self.batch_size))
                if iteration >= first:
                    yield batch, iteration

    def _epoch_rows(self, epoch: int, cache: OrderedDict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng((self.random_seed, epoch))
        order = [self.parts[i] for i in generator.permutation(len(self.parts))]
        for begin in range(0, len(order), WINDOW_PARTS):
            window = [row for part in order[begin : begin + WINDOW_PARTS] for row in self._rows(part, cache)]
            for index in generator.permutation(len(window)):
                yield window[index]

    def _rows(self, part: str, cache: OrderedDict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if part in cache:
            cache.move_to_end(part)
            return cache[part]
        images = self.run.folder.child("images").read_table(part, columns=["image_id", "image"]).to_pylist()
        stage, column = self.labels
        columns = ["image_id", column, *(["confidence"] if self.weighted else [])]
        labels = {row["image_id"]: row for row in self.run.folder.child(stage).read_table(part, columns).to_pylist()}
        rows = [
            {**row, "labels": labels[row["image_id"]][column], "confidence": labels[row["image_id"]].get("confidence")}
            for row in images
            if row["image_id"] in labels
        ]
        cache[part] = rows
        while len(cache) > 1 and sum(len(row["image"]) for kept in cache.values() for row in kept) > CACHE_BYTES:
            cache.popitem(last=False)
        return rows

    def _make(self, rows: list[dict[str, Any]], mine: range, iteration: int) -> CropBatch:
        images, labels, weights, seeds = [], [], [], []
        for index in mine:
            # A crop depends on the batch and the iteration, not on who draws it or after what.
            key = (self.random_seed, iteration, int.from_bytes(rows[index]["image_id"].encode(), "little"))
            generator, of_paste = np.random.default_rng(key), np.random.default_rng((*key, 1))
            crop = self._draw(rows[index], generator)
            if self.settings.paste > 0 and len(rows) > 1 and of_paste.random() < self.settings.paste:
                giver = rows[(index + 1 + int(of_paste.integers(len(rows) - 1))) % len(rows)]
                crop = paste_class(crop, self._draw(giver, of_paste), of_paste)
            images.append(crop[0])
            labels.append(crop[1])
            weights.append(crop[2])
            seeds.append(int(generator.integers(2**62)))
        return CropBatch(
            torch.stack(images),
            torch.stack(labels),
            torch.stack(weights) if self.weighted else None,
            tuple(rows[index]["image_id"] for index in mine),
            tuple(seeds),
        )

    def _draw(self, row: dict[str, Any], generator: np.random.Generator) -> Crop:
        confidence = np.array(Image.open(BytesIO(row["confidence"]))) if row["confidence"] else None
        image, labels = decode_rgb(row["image"], max_pixels=2**62), decode_label_png(row["labels"])
        return draw_crop(image, labels, confidence, generator, self.settings)
