"""A fault in one call of one verb of the storage: before it, after it was done, late, or with an answer of before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fmwsss.cluster.storage.folder import Folder, StorageError

VERBS = (
    "list", "sizes", "size", "exists", "read", "sha256", "write", "create", "swap", "write_many", "read_table",
    "num_rows", "write_table", "delete", "delete_all", "sweep",
)  # fmt: skip
READING = ("list", "sizes", "size", "exists", "read", "read_table", "num_rows", "sha256")
FAULTS = ("before", "after", "late", "stale", "partial")


def possible(verb: str, fault: str) -> bool:
    """Whether a verb can have a fault: only what reads is stale, and only a list has a part."""
    return {"stale": verb in ("list", "sizes"), "partial": verb in ("list", "sizes")}.get(fault, True)


class Faults:
    """Counts the calls of a verb, and lets something happen to one of them.

    Attributes:
        num_calls: of the verb until now.
        has_happened: whether the call that it was meant for came.
    """

    def __init__(self, verb: str, fault: str, number: int) -> None:
        self.verb, self.fault, self.number = verb, fault, number
        self.num_calls, self.has_happened = 0, False
        self.before: dict[str, Any] = {}

    def call(self, real: Callable[..., Any], folder: Folder, *arguments: Any, **options: Any) -> Any:
        """The real call, or what becomes of it."""
        self.num_calls += 1
        is_it = self.num_calls == self.number
        self.has_happened |= is_it
        if is_it and self.fault == "before":
            raise StorageError(f"{self.verb} of {folder.url} failed")
        if is_it and self.fault == "late":
            time.sleep(0.05)
        result = real(folder, *arguments, **options)
        if is_it and self.fault == "after":
            raise StorageError(f"{self.verb} of {folder.url} failed, though it was done")
        key = f"{folder.url} {arguments}"
        known = self.before.get(key, type(result)() if isinstance(result, list | dict) else result)
        self.before[key] = result
        if is_it and self.fault == "stale":
            return known
        if is_it and self.fault == "partial":
            half = len(result) // 2
            return result[:half] if isinstance(result, list) else dict(list(result.items())[:half])
        return result


@contextlib.contextmanager
def faulty(verb: str, fault: str, number: int) -> Iterator[Faults]:
    """For the length of a `with`, call `number` of a verb of every folder of this process has a fault."""
    faults, real = Faults(verb, fault, number), getattr(Folder, verb)

    def wrapped(folder: Folder, *arguments: Any, **options: Any) -> Any:
        return faults.call(real, folder, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, verb, wrapped)
        yield faults
