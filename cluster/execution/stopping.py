"""Ending a run in order: shards that are at work are finished and written, those that wait are not begun.

The driver leaves a note with Ray's head; every task and replica that is about to begin a shard looks for it. A stage
that has no shards, such as a training, is interrupted, and goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import ray

from fmwsss.cluster.execution import ray_compat

_draining = 0
_lock = threading.Lock()


class NotBegun(Exception):  # noqa: N818 - no error, but the reason why a shard comes back undone
    """A shard that was not begun, because the run is to end."""


def ask_to_stop() -> None:
    """Has the stage of this process end: after the shards at work, or else at once (KeyboardInterrupt)."""
    with _lock:
        ray_compat.put_note(_key(), "stop")
        if not _draining:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def forget() -> None:
    """Takes the note away that an earlier run of this process may have left."""
    ray_compat.delete_note(_key())


@contextlib.contextmanager
def draining() -> Iterator[None]:
    """For the length of a `with` the work consists of shards that look for the note themselves."""
    global _draining
    with _lock:
        _draining += 1
    try:
        yield
    finally:
        with _lock:
            _draining -= 1


def is_asked() -> bool:
    """Whether the job that this process works for is to end; asks Ray's head."""
    # No shard is left undone because the head did not answer.
    with contextlib.suppress(Exception):
        return ray_compat.read_note(_key()) is not None
    return False


def _key() -> str:
    return f"fmwsss-stop-{ray.get_runtime_context().get_job_id()}"
