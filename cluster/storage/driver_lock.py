"""One driver to a run: a claim in the run folder, renewed for as long as its driver lives.

Only PUT, GET, LIST and DELETE are asked for, and no clock is compared with that of another machine: a driver writes its
claim and then looks whether there is another; whoever finds one steps back. A claim is dead if its process is gone from
this machine, or if it stands still while one watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fmwsss.cluster.storage.folder import FileError, Folder, StorageError

CLAIMS = "_driver"
BEAT_S = 5.0
SILENT_S = 60.0  # twelve beats; time in which the store itself gives no answer is not counted
NUM_ATTEMPTS = 3


class RunInUse(RuntimeError):  # noqa: N818 - the name says what happened
    """Another driver works on this run, or took it over; the line says who."""


@contextlib.contextmanager
def hold(folder: Folder, progress: Callable[[], dict[str, Any] | None]) -> Iterator[None]:
    """Keeps every other driver from a run for the length of a `with`; to be called from the main thread.

    Args:
        folder: the run folder.
        progress: what the claim shall tell `fmwsss status` with every beat; JSON.

    Raises:
        RunInUse: another driver holds the run, or took it over because this one gave no sign for SILENT_S.
    """
    claims = folder.child(CLAIMS)
    name = f"{uuid.uuid4().hex}.json"
    about = {"host": socket.gethostname(), "process": _this_process(), "pid": os.getpid(), "started": _now()}

    def beat(number: int) -> None:
        claim = {**about, "beat": number, "at": _now(), "progress": progress()}
        claims.write(name, (json.dumps(claim, indent=2) + "\n").encode())

    _claim(folder, claims, name, beat)
    ended, lost = threading.Event(), threading.Event()

    def keep_beating() -> None:
        number = 0
        while not ended.wait(BEAT_S):
            number += 1
            # A store that is out of order is the main thread's affair.
            with contextlib.suppress(StorageError):
                if not claims.exists(name):
                    lost.set()
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                beat(number)

    thread = threading.Thread(target=keep_beating, daemon=True, name="claim")
    # A shell starts what runs in the background deaf to it, and it is how `keep_beating` stops this driver.
    was_deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if was_deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise RunInUse(
                f"{folder.url} was taken over by another driver; this one gave no sign for a while"
            ) from None
        raise
    finally:
        ended.set()
        thread.join()
        if was_deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Found dead by the next driver if the store can't be reached now.
        with contextlib.suppress(StorageError):
            claims.delete([name])


def read_claims(folder: Folder) -> dict[str, dict[str, Any]]:
    """The claims on a run by name; more than one only for the moment in which two drivers meet."""
    claims = folder.child(CLAIMS)
    found = {}
    for name in claims.list():
        # Gone between the two requests, or written by a hand.
        with contextlib.suppress(FileError, json.JSONDecodeError):
            found[name] = json.loads(claims.read(name))
    return found


def is_gone(claim: dict[str, Any]) -> bool | None:
    """Whether the process of a claim has ended; None if it ran on another machine."""
    own = _this_process()
    theirs = claim.get("process")
    if not own or not theirs or theirs["machine"] != own["machine"]:
        return None
    return _start_of(claim["pid"]) != theirs["start"]


def _claim(folder: Folder, claims: Folder, name: str, beat: Callable[[int], None]) -> None:
    for _ in range(NUM_ATTEMPTS):
        for other, claim in read_claims(folder).items():
            _remove_if_dead(folder, claims, other, claim)
        beat(0)
        others = {other: claim for other, claim in read_claims(folder).items() if other != name}
        if not others:
            return
        # Two started at once and each sees the other: both step back, and come again at different times.
        claims.delete([name])
        time.sleep(random.uniform(0.1, 3.0))
    raise RunInUse(_in_use(folder, next(iter(others.values()))))


def _remove_if_dead(folder: Folder, claims: Folder, name: str, claim: dict[str, Any]) -> None:
    gone = is_gone(claim)
    if gone is False:
        raise RunInUse(_in_use(folder, claim))
    if gone is None:
        print(
            f"{folder.url} is claimed by a driver on {claim.get('host')}; watching for {SILENT_S:g} s whether it lives",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + SILENT_S
        while time.monotonic() < deadline:
            time.sleep(min(BEAT_S / 2, SILENT_S / 4))
            asked_s = time.monotonic()
            now = read_claims(folder).get(name)
            deadline += time.monotonic() - asked_s
            if now is None:
                return
            if now.get("beat") != claim.get("beat"):
                raise RunInUse(_in_use(folder, now))
    claims.delete([name])


def _in_use(folder: Folder, claim: dict[str, Any]) -> str:
    return (
        f"{folder.url} is in use: a driver on {claim.get('host')} (process {claim.get('pid')}, since "
        f"{claim.get('started')}) works on it; wait for its end, or stop it"
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _this_process() -> dict[str, str] | None:
    """What tells this process from every other: where its number is valid, and when it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
    return {"machine": machine, "start": _start_of(os.getpid())}


def _start_of(pid: int) -> str:
    """The start time of a process in ticks since boot; empty if there is none, or only what is left of a dead one."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else start
