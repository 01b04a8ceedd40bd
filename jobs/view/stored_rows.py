"""Rows of a run's tables, one image at a time, with the parts that were read last kept within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from fmwsss.cluster.storage.ledger import Run

KEPT_BYTES = 192 << 20
NUM_AT_ONCE = 4  # parts that are read at a time: each may hold large photographs
T = TypeVar("T")


class BoundedCache(Generic[T]):
    """What was made last, by key, up to a number of bytes; what is asked for twice at once is made once."""

    def __init__(self, max_bytes: int, size: Callable[[T], int], num_at_once: int) -> None:
        self._max_bytes, self._size = max_bytes, size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}
        self._at_once = threading.BoundedSemaphore(num_at_once)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under a key, or else what `make` returns; its errors are not kept.

        Args:
            key: of it.
            make: makes it.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            own = self._making.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                with self._at_once:
                    value = make()
                self._keep(key, value)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _keep(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._kept[key] = value
            self._num_bytes += self._size(value)
            while self._num_bytes > self._max_bytes and self._kept:
                _, old = self._kept.popitem(last=False)
                self._num_bytes -= self._size(old)

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return self._num_bytes


class StoredRows:
    """The rows of the stages of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stages: dict[str, set[str]] = {}
        self._tables: BoundedCache[Any] = BoundedCache(KEPT_BYTES, lambda table: table.nbytes, NUM_AT_ONCE)

    def row(self, stage: str, part: str, image_id: str, columns: Sequence[str]) -> dict[str, Any] | None:
        """The row of an image; None where the stage has no such part, or the part no such image.

        Args:
            stage: name.
            part: that the image is in.
            image_id: of the image.
            columns: beside `image_id`.
        """
        if not self.has_part(stage, part):
            return None
        wanted = ("image_id", *columns)
        file = self._run.file_of(stage, part)
        table = self._tables.get((stage, file, wanted), lambda: self._run.read_part(stage, part, columns=list(wanted)))
        ids = table["image_id"].to_pylist()
        return table.slice(ids.index(image_id), 1).to_pylist()[0] if image_id in ids else None

    def has_part(self, stage: str, part: str) -> bool:
        """Whether a part of a stage is written; a stage that was not begun is looked at again.

        Args:
            stage: name.
            part: `part-00000.parquet`, ...
        """
        parts = self._stages.get(stage)
        if not parts:
            parts = self._stages[stage] = set(self._run.parts(stage))
        return part in parts
