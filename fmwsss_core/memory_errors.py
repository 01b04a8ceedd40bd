"""Errors that say that memory did not suffice, on a GPU or beside it."""

from __future__ import annotations

# Of PyTorch's allocator for CPUs, which raises a plain RuntimeError, and of oneDNN.
_OF_CPU = ("defaultcpuallocator", "can't allocate memory", "cannot allocate memory", "not enough memory")
_OF_GPU = ("cuda out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or of Python means that there was too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in (*_OF_CPU, *_OF_GPU))
