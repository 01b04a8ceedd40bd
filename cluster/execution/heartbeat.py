"""Signs of life from inside of a shard: it may take hours without anything being amiss, an image does not.

Ray Data itself sees only whole shards come and go. A worker that finishes an image says so in the cluster's control
store; the driver, which waits for shards, listens there.
"""

from __future__ import annotations

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
    from ray.experimental import internal_kv

    if internal_kv._internal_kv_initialized():
        _beaten_s = now_s
        try:
            internal_kv._internal_kv_put(_key(), str(time.time_ns()), overwrite=True)
        except Exception:  # the next one will do; no image is lost over this one
            return


def heard() -> bytes | None:
    """The last sign of any worker of this job; another one than before says that some image was finished since."""
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_get(_key())


def _key() -> str:
    import ray

    return f"fmwsss-pulse-{ray.get_runtime_context().get_job_id()}"
