"""A connection to Ray: to the cluster a job runs in, to a named one, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

logger = logging.getLogger("fmwsss")


class SessionError(ValueError):
    """No Ray to work with; the message says what to do."""


@contextlib.contextmanager
def session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Connects for the length of a `with`, or uses the connection that is already there.

    Args:
        address: a cluster's address; None means the cluster of the surrounding `ray job`, else a local one, started
            here and ended with the block.
        num_cpus: logical CPUs of a local cluster; None takes what the machine has. No effect on an existing one.

    Raises:
        SessionError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    # "local" rather than None: a stale cluster file in Ray's temporary folder would make it wait for a dead head.
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # The C++ side of a driver would write to the terminal; what matters of it arrives as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Tasks that die for want of memory would be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    is_local = target == "local"
    try:
        with _silent_stderr():
            ray.init(
                address=target,
                num_cpus=num_cpus if is_local else None,
                include_dashboard=False if is_local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
    except ConnectionError as error:
        raise SessionError(f"no Ray cluster answers at {target}: {str(error).splitlines()[0]}") from None
    quiet_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The C++ side announces on the terminal that its log level was set; what goes wrong still raises."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def quiet_ray_data() -> None:
    """Leaves the terminal to our own bars: Ray Data's messages below errors go to its log file only."""
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
