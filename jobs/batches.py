"""The batches that prompts are learned from: an order drawn from the seed of the run, whoever reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from cluster.ledger import Run
from fmwsss_core.images import decode_label_png, decode_rgb
from fmwsss_core.views import view
from fmwsss_core.vocabulary import Vocabulary

WINDOW_PARTS = 16  # rows are shuffled across this many parts at a time: memory is bounded at any size of the data set
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """One worker's share of a batch."""

    images: UInt8[Tensor, "batch 3 crop crop"]
    present: Bool[Tensor, "batch classes"]
    labels: UInt8[Tensor, "batch crop crop"] | None


@dataclass(frozen=True)
class BatchSource:
    """Where views come from and how they are drawn; small and picklable.

    Attributes:
        run: its `images/` are read, and the seeds if there is a stage of them.
        parts: names of the parts of `images/`.
        seed_stage: the stage whose label maps go with the images, or None.
        vocabulary: the classes.
        batch_size: images of all workers together.
        augment: keyword arguments of `fmwsss_core.views.view`.
        random_seed: the run's.
    """

    run: Run
    parts: tuple[str, ...]
    seed_stage: str | None
    vocabulary: Vocabulary
    batch_size: int
    augment: dict[str, Any]
    random_seed: int

    def batches(self, first: int, last: int, per_epoch: int, rank: int, num_workers: int) -> Iterator[Batch]:
        """The share of worker `rank` in batches `first` to `last`, made one ahead of where they are used."""
        cache: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        with ThreadPoolExecutor(1) as pool:
            pending = None
            for rows, epoch in self._row_batches(first, last, per_epoch, cache):
                share = rows[rank::num_workers]
                upcoming = pool.submit(self._make, share, epoch)
                if pending is not None:
                    yield pending.result()
                pending = upcoming
            if pending is not None:
                yield pending.result()

    def _row_batches(
        self, first: int, last: int, per_epoch: int, cache: OrderedDict[str, list[dict[str, Any]]]
    ) -> Iterator[tuple[list[dict[str, Any]], int]]:
        for epoch in range(first // per_epoch, -(-last // per_epoch)):
            rows = self._epoch_rows(epoch, cache)
            for iteration in range(epoch * per_epoch, min(last, (epoch + 1) * per_epoch)):
                batch = list(islice(rows, self.batch_size))
                if iteration >= first:
                    yield batch, epoch

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
        rows = self.run.folder.child("images").read_table(part, columns=["image_id", "image", "classes"]).to_pylist()
        if self.seed_stage:
            seeds = self.run.folder.child(self.seed_stage).read_table(part, columns=["image_id", "seed"])
            by_id = {row["image_id"]: row["seed"] for row in seeds.to_pylist()}
            rows = [{**row, "seed": by_id[row["image_id"]]} for row in rows if row["image_id"] in by_id]
        cache[part] = rows
        while len(cache) > 1 and sum(len(row["image"]) for kept in cache.values() for row in kept) > CACHE_BYTES:
            cache.popitem(last=False)
        return rows

    def _make(self, rows: list[dict[str, Any]], epoch: int) -> Batch:
        views, targets = [], []
        present = torch.zeros(len(rows), len(self.vocabulary.classes), dtype=torch.bool)
        for index, row in enumerate(rows):
            present[index, [number - 1 for number in self.vocabulary.indices(row["classes"])]] = True
            labels = decode_label_png(row["seed"]) if self.seed_stage else None
            # A view depends on the image and the epoch, not on who draws it or after what.
            key = int.from_bytes(row["image_id"].encode(), "little")
            generator = np.random.default_rng((self.random_seed, epoch, key))
            pixels, target = view(decode_rgb(row["image"], max_pixels=2**62), labels, generator, **self.augment)
            views.append(pixels)
            targets.append(target)
        return Batch(torch.stack(views), present, torch.stack(targets) if self.seed_stage else None)


def batches_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches of an epoch; what is left over is in another epoch's, since each has another order."""
    return max(1, num_images // batch_size)
