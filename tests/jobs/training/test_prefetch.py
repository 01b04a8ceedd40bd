"""Batches that are made ready in a thread: their order, their errors, their end; and pixels out of Arrow."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch

from fmwsss.jobs.training.arrow_tensors import stacked
from fmwsss.jobs.training.prefetch import AHEAD, prefetched, sent

CPU = torch.device("cpu")


class Source:
    """Counts what was drawn of it, and by whom it was closed."""

    def __init__(self, num_batches: int, fails_at: int | None = None) -> None:
        self.num_batches, self.fails_at = num_batches, fails_at
        self.num_drawn = 0
        self.closed_by: str | None = None

    def batches(self) -> Generator[int, None, None]:
        try:
            for number in range(self.num_batches):
                if number == self.fails_at:
                    raise ValueError("part-00003 is damaged")
                self.num_drawn += 1
                yield number
        finally:
            self.closed_by = threading.current_thread().name


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_and_the_thread_ends():
    source = Source(20)
    with prefetched(source.batches(), lambda number: 10 * number, CPU) as batches:
        assert list(batches) == list(range(0, 200, 10))
    assert source.closed_by == "prefetch"
    assert threads() == []


def test_no_more_are_drawn_than_may_wait_and_a_training_that_breaks_off_leaves_nothing():
    source = Source(10**9)

    def train() -> None:
        with prefetched(source.batches(), lambda number: number, CPU) as batches:
            for number in batches:
                # Those that wait, the one that is used, and the one that has no place yet.
                assert source.num_drawn <= number + AHEAD + 2
                if number == 5:
                    raise RuntimeError("not finite")

    with pytest.raises(RuntimeError, match="not finite"):
        train()
    assert source.closed_by == "prefetch"
    assert threads() == []


@pytest.mark.parametrize("where", ["drawing", "making ready"])
def test_an_error_comes_in_the_place_of_its_batch(where: str):
    source = Source(10, fails_at=3 if where == "drawing" else None)

    def make_ready(number: int) -> int:
        if number == 3:
            raise ValueError("part-00003 is damaged")
        return number

    seen = []
    with (
        pytest.raises(ValueError, match="part-00003 is damaged"),
        prefetched(source.batches(), make_ready, CPU) as batches,
    ):
        seen.extend(batches)
    assert seen == [0, 1, 2]
    assert source.closed_by == "prefetch"


@dataclass(frozen=True)
class Mixed:
    images: torch.Tensor
    features: tuple[torch.Tensor, ...]
    weights: torch.Tensor | None
    image_ids: tuple[str, ...]


def test_all_tensors_of_a_batch_are_sent_and_nothing_else():
    batch = Mixed(torch.ones(2), (torch.zeros(3), torch.ones(1)), None, ("a", "b"))
    there = sent(batch, torch.device("meta"))
    assert [tensor.device.type for tensor in (there.images, *there.features)] == ["meta"] * 3
    assert (there.weights, there.image_ids) == (None, ("a", "b"))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_pixels_out_of_arrow(kind: pa.DataType):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 2, 3)).astype(np.uint8)
    rows = [row.tobytes() for row in pixels]
    # Chunks, one of them cut out of the middle of another array, one empty.
    middle = pa.array([b"zz", *rows[2:5], b"z"], kind).slice(1, 3)
    column = pa.chunked_array([pa.array(rows[:2], kind), middle, pa.array([], kind), pa.array(rows[5:], kind)])
    assert np.array_equal(stacked(column, 2, 3).numpy(), pixels)
    with pytest.raises(ValueError, match=r"rows of 6 bytes are expected, not of \[2 6\]|\[2, 6\]"):
        stacked(pa.chunked_array([pa.array([b"zz", rows[0]], kind)]), 2, 3)
    with pytest.raises(ValueError, match="rows of 6 bytes are expected"):
        stacked(pa.chunked_array([pa.array([None, rows[0]], kind)]), 2, 3)
