"""Batches under memory that really runs out."""

from __future__ import annotations

import pytest
import torch

from fmwsss.core.adaptive_batch import FittingBatch
from tests.support.card import Card

ITEM_BYTES = 64 << 20


def test_a_batch_that_does_not_fit_is_halved_and_every_item_comes_once(card: Card):
    batch, sizes = FittingBatch(8), []

    def function(items: list[int]) -> list[int]:
        torch.zeros(len(items) * ITEM_BYTES, dtype=torch.uint8, device=card.device)
        sizes.append(len(items))
        return items

    with card.room_for(3 * ITEM_BYTES):
        results = [*batch.run(function, [*range(9)])]
    assert [item for result in results for item in result] == [*range(9)]
    assert sizes == [2, 2, 2, 2, 1]
    assert batch.size == 2


def test_an_item_that_does_not_fit_is_an_error_that_names_memory(card: Card):
    with card.room_for(ITEM_BYTES // 2), pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        next(FittingBatch(2).run(lambda items: torch.zeros(ITEM_BYTES, device=card.device), [0, 1]))
