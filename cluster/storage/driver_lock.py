"""One driver to a run: a claim in the run folder, renewed for as long as its driver lives.

<run>/_driver/claim-<generation>.json   who holds the run: created once, never written again
<run>/_driver/beat-<token>.json         that it lives, and how far it is; written by its driver every few seconds

A claim is created under a name that no other driver can create too, one generation above all that are there; where the
store has no writes that only create, the name also holds a token, and whoever finds another claim beside its own steps
back. No clock is compared with that of another machine: a claim is dead if its process is gone from this machine, or if
its beats stand still while one watches. Whoever was replaced finds its claim gone, or one of a higher generation: the
driver looks after each beat, and every process that works for it before it writes or deletes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fmwsss.cluster.storage.driver_signals import owned_signals
from fmwsss.cluster.storage.folder import FileError, Folder, StorageError
from fmwsss.cluster.storage.storage_errors import seconds_from

CLAIMS = "_driver"
# Twelve beats; time in which the store itself gives no answer is not counted. The same for every driver of a run.
SILENT_S = seconds_from("FMWSSS_LEASE_S", 60)
BEAT_S = SILENT_S / 12
NUM_ATTEMPTS = 3
# How long a process that found its driver's claim in place need not look again.
LEAVE_S = 1.0
_CLAIM = re.compile(r"claim-(\d+)(?:-[0-9a-f]+)?\.json")
_asked: dict[str, float] = {}


class RunInUse(StorageError):  # noqa: N818 - the name says what happened
    """Another driver works on this run, or took it over; the line says who."""


@dataclass(frozen=True)
class Claim:
    """A driver's right to write into a run. Small and picklable: whoever works for the driver asks it.

    Attributes:
        url: of the run.
        name: of the claim's file.
        generation: above those of all claims before it.
    """

    url: str
    name: str
    generation: int

    def __call__(self) -> None:
        """What guards a folder (`Folder.guard`): raises RunInUse once the driver was replaced."""
        now_s = _time_s()
        if now_s - _asked.get(self.url + self.name, -LEAVE_S) >= LEAVE_S:
            self.demand()
            _asked[self.url + self.name] = now_s

    def demand(self) -> None:
        """As a call, but always looks.

        Raises:
            RunInUse: the claim is gone, or there is one of a higher generation.
        """
        names = Folder(self.url).child(CLAIMS).list("claim-")
        if self.name not in names or any(_generation(name) > self.generation for name in names):
            raise RunInUse(f"{self.url} was taken over by another driver; this one gave no sign for a while")


@contextlib.contextmanager
def hold(folder: Folder, progress: Callable[[], dict[str, Any] | None]) -> Iterator[Claim]:
    """Keeps every other driver from a run for the length of a `with`; to be called from the main thread.

    Args:
        folder: the run folder.
        progress: what the claim shall tell `fmwsss status` with every beat; JSON.

    Yields:
        The claim, to guard the folder by: `folder.guarded(claim)`.

    Raises:
        RunInUse: another driver holds the run, or took it over because this one gave no sign for SILENT_S.
        RuntimeError: what renews the claim came to an end.
    """
    # A shell starts what runs in the background deaf to SIGINT, and it is how `_hold` stops this driver.
    with owned_signals(), _hold(folder, progress) as claim:
        yield claim


@contextlib.contextmanager
def _hold(folder: Folder, progress: Callable[[], dict[str, Any] | None]) -> Iterator[Claim]:
    claims, token = folder.child(CLAIMS), uuid.uuid4().hex
    about = {"host": socket.gethostname(), "process": _this_process(), "pid": os.getpid(), "started": _now()}
    about["token"] = token

    def beat(number: int) -> None:
        told = {"beat": number, "at": _now(), "progress": progress()}
        claims.write(_beat_of(token), (json.dumps(told, indent=2) + "\n").encode())

    written = [_beat_of(token)]
    try:
        beat(0)
        claim = _claim(folder, claims, about, written)
    except BaseException:
        _withdraw(claims, written)
        raise
    ended, lost = threading.Event(), threading.Event()
    died: list[BaseException] = []

    def keep_beating() -> None:
        number = 0
        try:
            while not ended.wait(BEAT_S):
                number += 1
                # A store that is out of order is the main thread's affair.
                try:
                    claim.demand()
                    beat(number)
                    claim.demand()
                except RunInUse:
                    lost.set()
                    break
                except StorageError:
                    continue
        except BaseException as error:
            died.append(error)
        if not ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=keep_beating, daemon=True, name="claim")
    thread.start()
    try:
        yield claim
    except BaseException as error:
        if lost.is_set():
            raise RunInUse(
                f"{folder.url} was taken over by another driver; this one gave no sign for a while"
            ) from None
        if died and isinstance(error, KeyboardInterrupt):
            reason = f"{type(died[0]).__name__}: {died[0]}"
            raise RuntimeError(f"the claim on {folder.url} could not be renewed: {reason}") from died[0]
        raise
    finally:
        ended.set()
        thread.join()
        _withdraw(claims, written)


def _withdraw(claims: Folder, names: list[str]) -> None:
    # Found dead by the next driver if the store can't be reached now.
    with contextlib.suppress(StorageError):
        claims.delete(names)


def read_claims(folder: Folder) -> dict[str, dict[str, Any]]:
    """The claims on a run by name, each with its last beat; more than one only while a driver replaces another."""
    claims = folder.child(CLAIMS)
    names = claims.list()
    found = {}
    for name in names:
        # Gone between the two requests, or written by a hand.
        with contextlib.suppress(FileError, json.JSONDecodeError):
            if name.startswith("beat-"):
                continue
            claim = json.loads(claims.read(name))
            own_beat = _beat_of(claim.get("token", ""))
            found[name] = {"at": claim.get("started"), "progress": None, **claim}
            if own_beat in names:
                found[name] |= json.loads(claims.read(own_beat))
    return found


def is_gone(claim: dict[str, Any]) -> bool | None:
    """Whether the process of a claim has ended; None if it ran on another machine."""
    own = _this_process()
    theirs = claim.get("process")
    if not own or not theirs or theirs["machine"] != own["machine"]:
        return None
    return _start_of(claim["pid"]) != theirs["start"]


def _claim(folder: Folder, claims: Folder, about: dict[str, Any], written: list[str]) -> Claim:
    is_exclusive = claims.creates_exclusively()
    for _ in range(NUM_ATTEMPTS):
        there = read_claims(folder)
        for other, claim in there.items():
            _look_for_life(folder, other, claim)
        # A number that was never used before: a driver that sleeps may still think of one that is gone.
        generation = max(int(time.time() * 1000), *(_generation(other) + 1 for other in there), 0)
        name = f"claim-{generation:015d}{'' if is_exclusive else '-' + about['token']}.json"
        written.append(name)  # before: an interrupt must not leave it behind
        is_mine = claims.create(name, (json.dumps(about, indent=2) + "\n").encode())
        others = {other: claim for other, claim in read_claims(folder).items() if other not in (name, *there)}
        if is_mine and not others:
            # Only now that there is a claim above them.
            claims.delete([*there, *(_beat_of(claim.get("token", "")) for claim in there.values())])
            return Claim(folder.url, name, generation)
        # Two started at once and each sees the other: both step back, and come again at different times.
        written.remove(name)
        if is_mine:
            claims.delete([name])
        time.sleep(random.uniform(0.1, 3.0))
    raise RunInUse(_in_use(folder, next(iter(others.values()), (there and next(iter(there.values()))) or about)))


def _look_for_life(folder: Folder, name: str, claim: dict[str, Any]) -> None:
    """Returns once a claim is found dead or gone; raises RunInUse if its driver lives."""
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


def _in_use(folder: Folder, claim: dict[str, Any]) -> str:
    return (
        f"{folder.url} is in use: a driver on {claim.get('host')} (process {claim.get('pid')}, since "
        f"{claim.get('started')}) works on it; wait for its end, or stop it"
    )


def _generation(name: str) -> int:
    """Of a claim by its name; 0 of those of earlier releases."""
    match = _CLAIM.fullmatch(name)
    return int(match[1]) if match else 0


def _beat_of(token: str) -> str:
    return f"beat-{token or 'none'}.json"


def _time_s() -> float:
    """Goes on while a machine sleeps, where there is such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
