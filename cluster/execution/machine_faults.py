"""What is a machine's fault and not an image's: then the worker leaves, and its shard is done again elsewhere.

An image that is told as bad stays out of the result; so nothing may be called so that another machine, or the same one
with a fresh process, would have done.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from typing import Any, Literal

from fmwsss.core.errors import FmwsssError
from fmwsss.core.memory_errors import is_out_of_memory

Kind = Literal["memory", "machine"]
_OF_CUDA = (
    "cuda error",
    "cublas",
    "cudnn",
    "cusolver",
    "cufft",
    "nccl",
    "no cuda-capable",
    "nvml",
    "device-side assert",
)
_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
_PREFIX = "fmwsss-fault"


class MachineFault(FmwsssError, RuntimeError):  # noqa: N818 - the name says what happened
    """A process that can't do what any other could: the line says why."""


def kind_of(error: BaseException) -> Kind | None:
    """Whose fault an error is: memory that did not suffice, something else of the machine, or None: the image's."""
    if is_out_of_memory(error):
        return "memory"
    if isinstance(error, MachineFault | ImportError):
        return "machine"
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return "machine"
    text = str(error).lower()
    is_of_cuda = isinstance(error, RuntimeError) and any(word in text for word in _OF_CUDA)
    is_of_library = isinstance(error, OSError) and "cannot open shared object" in text
    return "machine" if is_of_cuda or is_of_library else None


def leave(part: str, error: BaseException, kind: Kind) -> None:
    """Ends this worker, if it is one of Ray's, after it has said why; its shard is tried again by another.

    Args:
        part: that the worker had.
        error: what went wrong, for the message.
        kind: see `kind_of`.
    """
    if "ray" not in sys.modules:
        return
    from fmwsss.cluster.execution.ray_compat import is_worker, put_note

    if not is_worker():
        return
    words = " ".join(str(error).split())
    told = {"kind": kind, "message": f"{type(error).__name__} on {socket.gethostname()}: {words}"[:1000]}
    put_note(_key(part), json.dumps(told))
    # Not an exception: what is broken in this process must not have another shard, and Ray starts a fresh one.
    os._exit(1)


def told_of(part: str) -> dict[str, Any] | None:
    """What the last worker that left over a part said: `kind` and `message`; None if none said anything."""
    from fmwsss.cluster.execution.ray_compat import read_note

    told = read_note(_key(part))
    return json.loads(told) if told else None


def _key(part: str) -> str:
    import ray

    return f"{_PREFIX}-{ray.get_runtime_context().get_job_id()}-{part}"
