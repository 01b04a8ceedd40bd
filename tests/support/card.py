"""One device for the tests of the GPU path: a real card, or its double where there is none."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tests.support.cuda_double import CudaDouble


@dataclass(frozen=True)
class Card:
    """A device, and what can be asked of it on both kinds.

    Attributes:
        device: `cuda:0`.
        double: the double, or None on a real card.
    """

    device: torch.device
    double: CudaDouble | None

    @contextlib.contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Times that the host waits for the device inside, by line."""
        if self.double is not None:
            with self.double.counting() as counts:
                yield counts.waits
            return
        found: Counter[str] = Counter()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
                found.update(f"{one.filename}:{one.lineno}" for one in told if "synchroniz" in str(one.message))

    def allocated_bytes(self) -> int:
        """Bytes of the tensors that are alive."""
        gc.collect()
        return torch.cuda.memory_allocated()

    @contextlib.contextmanager
    def room_for(self, num_bytes: int) -> Iterator[None]:
        """Lets no more than so many bytes be allocated beside what is there now."""
        if self.double is not None:
            before, self.double.memory_bytes = self.double.memory_bytes, self.allocated_bytes() + num_bytes
            try:
                yield
            finally:
                self.double.memory_bytes = before
            return
        torch.cuda.empty_cache()
        _, total_bytes = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total_bytes)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
