"""Per-image heartbeat: a healthy shard may take hours, a healthy image does not.

Ray Data itself sees only whole shards come and go. A worker that finishes an image says so in the cluster's control
store; the driver, which waits for shards, listens there.
"""

from __future__ import annotations

import contextlib
import sys
import time

# Of one process. A thousand workers are then thirty small writes a second.
BEAT_S = 30.0
_beaten_s = -BEAT_S


def beat() -> None:
    """Says that an image was finished, if this process belongs to a cluster and has not said so just now."""
    global _beaten_s
    now_s = time.monotonic()
    if now_s - _beaten_s < BEAT_S or "ray" not in sys.modules:
        return
    import ray

    if ray.is_initialized():
        from fmwsss.cluster.execution.ray_compat import put_note

        _beaten_s = now_s
        # The next one will do: no image is lost over this one.
        with contextlib.suppress(Exception):
            put_note(_key(), str(time.time_ns()))


def heard() -> bytes | None:
    """The last sign of any worker of this job; another one than before says that some image was finished since."""
    from fmwsss.cluster.execution.ray_compat import read_note

    return read_note(_key())


def _key() -> str:
    import ray

    return f"fmwsss-pulse-{ray.get_runtime_context().get_job_id()}"
