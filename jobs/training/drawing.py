"""What a training sees, drawn by Ray Data tasks on any node, in an order that is the same however many draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa

from fmwsss.jobs.training.sampling import batches_per_epoch, places, windows


class DrawnSource(ABC):
    """Where batches come from: a frozen dataclass with these attributes, small and picklable.

    Attributes:
        parts: names of the parts of `images/`.
        part_rows: how many images of each part can be learned from (`sampling.count_rows`).
        batch_size: images of all workers together.
        random_seed: the run's.
        schema: of a row on its way from the task that drew it to the worker that learns from it.
        rows_at_once: rows of a table on its way.
    """

    parts: tuple[str, ...]
    part_rows: tuple[int, ...]
    batch_size: int
    random_seed: int
    schema: ClassVar[pa.Schema]
    rows_at_once: ClassVar[int]

    @abstractmethod
    def read_part(self, part: str, epoch: int) -> list[dict[str, Any]]:
        """What the rows of one part are drawn from; images that can't be learned from are left out.

        Args:
            part: its name.
            epoch: counted from 0.
        """

    @abstractmethod
    def draw(self, rows: list[dict[str, Any]], index: int, batch: int, epoch: int) -> dict[str, Any]:
        """A row of `schema`: a function of the image, of its place and of the run's seed, not of who draws it.

        Args:
            rows: of the window, as `read_part` gave them.
            index: of the image in them.
            batch: that it is in.
            epoch: counted from 0.
        """

    @property
    def num_images(self) -> int:
        """Images that can be learned from."""
        return sum(self.part_rows)

    @property
    def rows_per_batch(self) -> int:
        """Images of a batch; fewer than were asked for where there are not as many."""
        return min(self.batch_size, self.num_images)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch, at least one (`sampling.batches_per_epoch`)."""
        return batches_per_epoch(self.num_images, self.batch_size)

    def tables(self, first: int, last: int, rank: int, num_workers: int, num_tasks: int) -> Iterator[pa.Table]:
        """The share of worker `rank` in batches `first` to `last`, drawn ahead of its use.

        Args:
            first: number of the first batch.
            last: number after the last one.
            rank: of this worker.
            num_workers: of the process group.
            num_tasks: windows at work at a time.

        Yields:
            Rows of `schema`, a table for each batch.
        """
        # Not above: training steps run where there is no Ray too.
        from fmwsss.cluster.execution.shard_pipeline import stream_shards

        share = len(range(rank, self.rows_per_batch, num_workers))
        shards = list(windows(self.parts, self.part_rows, self.batch_size, self.random_seed, first, last))
        arguments = {"source": self, "first": first, "last": last, "rank": rank, "num_workers": num_workers}
        if shards:
            yield from stream_shards(shards, draw_window, arguments, share, num_tasks)


def draw_window(
    block: pa.Table, source: DrawnSource, first: int, last: int, rank: int, num_workers: int
) -> Iterator[pa.Table]:
    """A block that names one window in, one worker's rows of its batches out, in order.

    Args:
        block: of one row.
        source: what batches are drawn of.
        first: number of the first batch.
        last: number after the last one.
        rank: of the worker.
        num_workers: of the process group.

    Yields:
        Tables of this worker's share, in the order of the batches.
    """
    (window,) = block.to_pylist()
    epoch = window["epoch"]
    rows = [row for part in window["parts"] for row in source.read_part(part, epoch)]
    mine = places(
        window, len(rows), source.num_images, source.batch_size, source.random_seed, first, last, rank, num_workers
    )
    for begin in range(0, len(mine), source.rows_at_once):
        drawn = [source.draw(rows, row, batch, epoch) for batch, row in mine[begin : begin + source.rows_at_once]]
        yield pa.Table.from_pylist(drawn, schema=source.schema)
    if not mine:
        yield source.schema.empty_table()
