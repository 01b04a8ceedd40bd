"""A connection to Ray: to the cluster a job runs in, to a named one, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from fmwsss.cluster.storage.driver_signals import retake_signals
from fmwsss.core.errors import InputError

logger = logging.getLogger("fmwsss")
NUM_STARTS = 3
CONNECT_S = 20.0


class SessionError(InputError):
    """No Ray to work with; the message says what to do."""


@contextlib.contextmanager
def session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Connects for the length of a `with`, or uses the connection that is already there.

    Args:
        address: a cluster's address; None means the cluster of the surrounding `ray job`, else a local one, started
            here and ended with the block.
        num_cpus: logical CPUs of a local cluster; None takes what the machine has. No effect on an existing one.

    Raises:
        SessionError: no cluster answers at the address, or none of our own could be started.
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
    # Ray would end workers that are idle for a second, and start others, with all that they import, for the next shard.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    is_local = target == "local"
    if is_local:
        with contextlib.suppress(OSError, RuntimeError):  # no place for it, or no home at all
            _make_private_token()
    else:
        _demand_answer(target)
    _start(
        address=target,
        num_cpus=num_cpus if is_local else None,
        include_dashboard=False if is_local else None,
        # Of this machine alone: nothing of a local cluster is to be reached from others.
        _node_ip_address="127.0.0.1" if is_local else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    retake_signals()
    quiet_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _demand_answer(address: str) -> None:
    """Ray itself would try for minutes to reach a head that is not there."""
    host, separator, port = address.rpartition(":")
    if "://" in address or not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise SessionError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None


def _start(**settings: Any) -> None:
    """`ray.init`, again where the machine was too busy: Ray gives a new node 30 seconds, which can't be changed."""
    for attempt in range(1, NUM_STARTS + 1):
        try:
            with _silent_stderr():
                ray.init(**settings)
            return
        except ConnectionError as error:
            raise SessionError(
                f"no Ray cluster answers at {settings['address']}: {str(error).splitlines()[0]}"
            ) from None
        except Exception as error:
            if "timed out during startup" not in str(error):
                # Of the machine or its settings, whatever its class: no room, no rights, a path too long for a socket,
                # another version of Ray in the cluster.
                raise SessionError(f"Ray does not start: {_first_line(error)}{_advice(error)}") from error
            ray.shutdown()
            if attempt == NUM_STARTS:
                raise SessionError(
                    f"Ray did not start on this machine, tried {NUM_STARTS} times; other programs may use up its "
                    "processors or its memory"
                ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _advice(error: Exception) -> str:
    text = str(error)
    if "AF_UNIX" in text:
        return "; give Ray a shorter folder by RAY_TMPDIR, such as /tmp"
    if isinstance(error, PermissionError | FileNotFoundError) or "ermission denied" in text:
        return "; give Ray a folder that can be written by RAY_TMPDIR"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "; make room there, or give Ray another folder by RAY_TMPDIR"
    if "home directory" in text:
        return "; set HOME to a folder that can be written"
    return ""


def token_file() -> Path:
    """Where the token lies that Ray's clients and nodes show each other."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _make_private_token() -> None:
    """Ray would write its token with the rights that the umask leaves, which is mostly for everybody to read."""
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.suppress(FileExistsError),
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file,
    ):
        file.write(secrets.token_hex(32))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


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
