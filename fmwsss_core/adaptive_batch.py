"""Adaptive batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from fmwsss.core.memory_errors import is_out_of_memory

Items = TypeVar("Items", list[Any], Tensor)
Result = TypeVar("Result")


class FittingBatch:
    """Adaptive batch size: halved on out-of-memory, of a GPU or of the host, and never raised again.

    Attributes:
        size: the number of items, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, function: Callable[[Items], Result], items: Items) -> Iterator[Result]:
        """The results of all items, a batch at a time, in order.

        Args:
            function: takes some of the items. Called again for those of them for which memory did not suffice.
            items: a list or a tensor, cut along its first dimension.

        Raises:
            torch.OutOfMemoryError: there is too little memory for a single item.
        """
        begin = 0
        while begin < len(items):
            batch = items[begin : begin + self.size]
            try:
                result = function(batch)
            except (RuntimeError, MemoryError) as error:
                # Of a CPU it is a plain RuntimeError.
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                self.size = len(batch) // 2
                # Not called from here: the error holds on to what was computed.
                continue
            begin += len(batch)
            yield result
