"""Batches that shrink: every item once, in order, whatever fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmwsss.core.adaptive_batch import FittingBatch


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 50))
def test_every_item_comes_once_and_in_order(num_items: int, size: int, room: int):
    batch, asked = FittingBatch(size), []

    def function(items: list[int]) -> list[int]:
        asked.append(len(items))
        if len(items) > room:
            raise torch.OutOfMemoryError
        return items

    results = [*batch.run(function, [*range(num_items)])]
    assert [item for result in results for item in result] == [*range(num_items)]
    assert asked == sorted(asked, reverse=True)
    assert batch.size <= size
    assert num_items == 0 or max(map(len, results)) <= room


def test_one_item_that_does_not_fit_is_an_error():
    def function(items: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    batch = FittingBatch(4)
    with pytest.raises(torch.OutOfMemoryError):
        next(batch.run(function, torch.zeros(3, 2)))
    assert batch.size == 1
