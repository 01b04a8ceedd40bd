"""Batches that are made ready in a thread while the step before them runs."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

AHEAD = 2  # batches that are ready and wait
LOOK_EVERY_S = 0.05  # for the end of the thread, while it is waited for

Drawn = TypeVar("Drawn")
Ready = TypeVar("Ready")
AnyBatch = TypeVar("AnyBatch")


@contextlib.contextmanager
def prefetched(
    batches: Generator[Drawn, None, None], make_ready: Callable[[Drawn], Ready], device: torch.device
) -> Iterator[Iterator[Ready]]:
    """What `make_ready` makes of each batch, in order, made in a thread of its own.

    At the end of the block, whatever ended it, the thread has closed `batches`: what draws them does not outlive the
    training. An error of the thread is raised where its batch would have come.

    Args:
        batches: asked for one after another, and closed, by the thread alone.
        make_ready: such as `pinned`, and sums that are taken of labels.
        device: of the training; the thread's memory is pinned for it.

    Yields:
        An iterator over what came of the batches.

    Raises:
        Exception: whatever the thread raised.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(AHEAD)
    stopped = threading.Event()
    index = torch.cuda.current_device() if device.type == "cuda" else None

    def draw() -> None:
        try:
            if index is not None:
                # A new thread is on the first GPU, and pinning there would make it a context of its own.
                torch.cuda.set_device(index)
            with contextlib.closing(batches):
                for batch in batches:
                    ready.put(("batch", make_ready(batch)))
                    if stopped.is_set():
                        return
            ready.put(("end", None))
        except BaseException as error:
            ready.put(("error", error))

    def taken() -> Iterator[Ready]:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    thread = threading.Thread(target=draw, name="prefetch", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        while thread.is_alive():
            # It may wait for a place.
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=LOOK_EVERY_S)
        thread.join()


def pinned(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """A dataclass of tensors in memory that a GPU copies from by itself; as it is where there is none.

    Args:
        batch: on the CPU.
        device: that it will be sent to.

    Returns:
        A dataclass of the same kind.
    """
    return _on_tensors(batch, Tensor.pin_memory) if device.type == "cuda" else batch


def sent(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """A dataclass of tensors on a device; a GPU copies what is `pinned` while the host goes on.

    Args:
        batch: on the CPU.
        device: where it goes.

    Returns:
        A dataclass of the same kind.
    """
    return _on_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _on_tensors(batch: AnyBatch, function: Callable[[Tensor], Tensor]) -> AnyBatch:
    changed: dict[str, Any] = {}
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, tuple) and value and all(isinstance(each, Tensor) for each in value):
            changed[field.name] = tuple(map(function, value))
    return replace(batch, **changed)  # type: ignore[type-var]
