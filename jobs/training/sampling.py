"""In which order a training sees its images: drawn from the seed of the run, whoever reads them and from wherever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fmwsss.cluster.storage.ledger import Run

WINDOW_PARTS = 16  # rows are shuffled across this many parts at a time: memory is bounded at any size of the data set
NUM_READERS = 16  # of ids, at the start; each waits for a store most of the time


def count_rows(
    run: Run, parts: Sequence[str], stages: Sequence[str], without: Set[str] = frozenset()
) -> tuple[int, ...]:
    """How many images of each part are in every one of some stages.

    Args:
        run: the run folder.
        parts: `part-00000.parquet`, ...
        stages: whose images count.
        without: images that do not count.

    Returns:
        A count for each part.
    """

    def count(part: str) -> int:
        tables = (run.read_part(stage, part, columns=["image_id"]) for stage in stages)
        return len(set.intersection(*(set(table["image_id"].to_pylist()) for table in tables)) - without)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return tuple(pool.map(count, parts))


def batches_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches of an epoch; what is left over is in another epoch's, since each has another order.

    Args:
        num_images: of the dataset.
        batch_size: over all workers.

    Returns:
        At least 1.
    """
    return max(1, num_images // batch_size)


def windows(
    parts: Sequence[str], part_rows: Sequence[int], batch_size: int, random_seed: int, first: int, last: int
) -> Iterator[dict[str, Any]]:
    """The windows that batches `first` to `last` lie in: which parts, in which epoch, from which row of it on.

    Args:
        parts: names of all parts.
        part_rows: how many images of each can be learned from.
        batch_size: images of all workers together.
        random_seed: the run's.
        first, last: batches, counted from the start of the training.
    """
    size, per_epoch = min(batch_size, sum(part_rows)), batches_per_epoch(sum(part_rows), batch_size)
    for epoch in range(first // per_epoch, -(-last // per_epoch)):
        order = np.random.default_rng((random_seed, epoch)).permutation(len(parts)).tolist()
        begin = 0
        for number in range(0, len(order), WINDOW_PARTS):
            window = order[number : number + WINDOW_PARTS]
            end = begin + sum(part_rows[i] for i in window)
            if epoch * per_epoch * size + end > first * size and begin < (last - epoch * per_epoch) * size:
                yield {"epoch": epoch, "parts": [parts[i] for i in window], "begin": begin}
            begin = end


def places(
    window: Mapping[str, Any],
    window_rows: int,
    num_images: int,
    batch_size: int,
    random_seed: int,
    first: int,
    last: int,
    rank: int,
    num_workers: int,
) -> list[tuple[int, int]]:
    """Batch and row of what one worker sees of a window, in order.

    Args:
        window: one of `windows`.
        window_rows: images of its parts that can be learned from.
        num_images: of all parts.
        batch_size, random_seed, first, last: as those of `windows`.
        rank: of the worker; it has every `num_workers`-th image of a batch.
        num_workers: that share each batch.
    """
    size, per_epoch = min(batch_size, num_images), batches_per_epoch(num_images, batch_size)
    epoch = window["epoch"]
    shuffled = np.random.default_rng((random_seed, epoch, window["begin"])).permutation(window_rows).tolist()
    found = []
    for position, row in enumerate(shuffled, start=window["begin"]):
        batch = epoch * per_epoch + position // size
        is_asked_for = position < per_epoch * size and first <= batch < last
        if is_asked_for and position % size % num_workers == rank:
            found.append((batch, row))
    return found
