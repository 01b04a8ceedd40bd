"""Errors that say that memory did not suffice, on a GPU or beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator

from fmwsss.core.errors import InputError

# Of PyTorch's allocator for CPUs, which raises a plain RuntimeError, and of oneDNN.
_OF_CPU = ("defaultcpuallocator", "can't allocate memory", "cannot allocate memory", "not enough memory")
_OF_GPU = ("cuda out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or of Python means that there was too little memory."""
    # Nobody who has not imported torch has an error of it.
    if isinstance(error, (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in (*_OF_CPU, *_OF_GPU))


@contextlib.contextmanager
def told_out_of_memory(advice: str) -> Generator[None]:
    """A `with` whose out-of-memory errors are a line with an advice.

    Args:
        advice: what to do, the end of the line.

    Raises:
        InputError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:200]
        raise InputError(f"out of memory ({words}): {advice}") from error
