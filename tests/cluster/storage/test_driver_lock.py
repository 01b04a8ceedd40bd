"""One driver to a run, on a disk and on a real S3 server; the way past a dead one."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fmwsss.cluster.storage import driver_lock as lock
from fmwsss.cluster.storage.driver_lock import CLAIMS, RunInUse, hold, read_claims
from fmwsss.cluster.storage.folder import Folder

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from fmwsss.cluster.storage import driver_lock as lock
from fmwsss.cluster.storage.folder import Folder
lock.BEAT_S = 0.1
with lock.hold(Folder(sys.argv[1]), lambda: {"stage": "images"}):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path / "run"))
    return Folder(request.getfixturevalue("s3_url")).child(f"lock/{tmp_path.name}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "SILENT_S", 1.5)


def nothing() -> None:
    return None


def start(folder: Folder, *prefix: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLD, folder.url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_and_told_who_is_first(folder: Folder) -> None:
    first = start(folder)
    try:
        with pytest.raises(RunInUse, match=rf"is in use: .*process {first.pid}"), hold(folder, nothing):
            pytest.fail("two drivers hold one run")
        (claim,) = read_claims(folder).values()
        assert claim["progress"] == {"stage": "images"}
    finally:
        first.kill()
        first.wait()


def test_a_driver_that_was_killed_here_is_no_obstacle(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(folder)
    first.kill()
    first.wait()
    assert len(read_claims(folder)) == 1
    monkeypatch.setattr(lock, "SILENT_S", 10_000)  # were its silence waited for, the test would time out
    with hold(folder, nothing):
        (claim,) = read_claims(folder).values()
        assert claim["pid"] == os.getpid()
    assert folder.list() == []


def foreign(folder: Folder, beat: int) -> None:
    """A claim as a driver on another machine writes it."""
    claim = {"host": "elsewhere", "pid": 1, "started": "2026-01-01", "beat": beat, "process": {"machine": "x y z"}}
    folder.child(CLAIMS).write("other.json", json.dumps(claim).encode())


def test_a_driver_elsewhere_that_lives_is_respected(folder: Folder) -> None:
    foreign(folder, 0)
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.1):
            foreign(folder, beat := beat + 1)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RunInUse, match="a driver on elsewhere"), hold(folder, nothing):
            pytest.fail("two drivers hold one run")
    finally:
        ended.set()
        thread.join()
    assert list(read_claims(folder)) == ["other.json"]


def test_a_driver_elsewhere_that_stands_still_is_dead(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(folder, 7)
    with hold(folder, nothing):
        assert list(read_claims(folder)) != ["other.json"]
        assert len(read_claims(folder)) == 1
    assert "claimed by a driver on elsewhere; watching" in capsys.readouterr().err


def test_time_in_which_the_store_does_not_answer_is_not_silence(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(folder, 0)
    read, pauses_s = lock.read_claims, [0.0, 2.0]  # the second look takes longer than SILENT_S

    def slow_read(folder: Folder) -> dict[str, dict[str, Any]]:
        time.sleep(pauses_s.pop(0) if pauses_s else 0)
        found = read(folder)
        if not pauses_s:
            foreign(folder, 1)  # now that the store answers, the other driver is heard again
        return found

    monkeypatch.setattr(lock, "read_claims", slow_read)
    with pytest.raises(RunInUse, match="a driver on elsewhere"), hold(folder, nothing):
        pytest.fail("two drivers hold one run")


@pytest.mark.parametrize("is_deaf", [False, True], ids=["foreground", "background"])
def test_who_was_taken_over_stops(folder: Folder, is_deaf: bool) -> None:
    """Also one that a shell started in the background, where it ignores interrupts."""
    before = signal.getsignal(signal.SIGINT)
    if is_deaf:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        with pytest.raises(RunInUse, match="taken over"), hold(folder, nothing) as claim:  # noqa: PT012
            folder.child(CLAIMS).delete([claim.name])
            wait()
        assert signal.getsignal(signal.SIGINT) is (signal.SIG_IGN if is_deaf else before)
    finally:
        signal.signal(signal.SIGINT, before)


def test_many_at_once_never_hold_it_together(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    code = HOLD.replace("time.sleep(60)", "open(sys.argv[2], 'a').write('in\\n'); time.sleep(4)\n    "
                        "open(sys.argv[2], 'a').write('out\\n')")  # fmt: skip
    journal = tmp_path / "journal"
    command = [sys.executable, "-c", code, folder.url, str(journal)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)
    ]
    errors = [process.communicate()[1].decode() for process in processes]
    lines = journal.read_text().split()
    assert lines == ["in", "out"] * (len(lines) // 2), "two held the run at the same time"
    held = [error for error in errors if "RunInUse" not in error]
    assert len(held) == len(lines) // 2


def test_an_interrupt_by_a_person_stays_one(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt), hold(folder, nothing):  # noqa: PT012
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        wait()
    assert folder.list() == []


def wait() -> None:
    """Until a signal comes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.02)
    pytest.fail("nothing stopped this driver")


def successor(folder: Folder, claim: lock.Claim) -> str:
    """The claim of a driver that took over, as it writes it; the one before is deleted after it."""
    name = f"claim-{claim.generation + 1:015d}.json"
    about = {"host": "elsewhere", "pid": 1, "started": "2026-01-01", "token": "ab", "process": {"machine": "x y z"}}
    assert folder.child(CLAIMS).create(name, json.dumps(about).encode())
    return name


def test_who_slept_through_a_takeover_writes_and_deletes_nothing_and_leaves_its_successor_alone(folder: Folder) -> None:
    folder.write("part", b"of both")
    with pytest.raises(RunInUse, match="taken over"), hold(folder, nothing) as claim:  # noqa: PT012
        workers = pickle.loads(pickle.dumps(folder.child("stage").guarded(claim)))
        workers.write("before", b"1")
        other = successor(folder, claim)
        lock._asked.clear()  # a worker that was away for longer than LEAVE_S
        for forbidden in (
            lambda: workers.write("after", b"1"),
            lambda: workers.create("after", b"1"),
            lambda: workers.write_many({"after": b"1"}),
            lambda: workers.delete(["before"]),
            lambda: workers.child("png").delete_all(),
        ):
            with pytest.raises(RunInUse, match="taken over"):
                forbidden()
        wait()
    assert folder.list() == [f"{CLAIMS}/{other}", "part", "stage/before"]


def test_a_beat_that_was_stalled_does_not_bring_a_claim_back(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the claim and the PUT of the beat, a driver is stopped for longer than its lease."""
    stalled = threading.Event()
    write = Folder.write

    def slow_write(own: Folder, name: str, data: bytes) -> None:
        if name.startswith("beat-") and threading.current_thread().name == "claim" and not stalled.is_set():
            successor(folder, claims[0])
            folder.child(CLAIMS).delete([claims[0].name])
            stalled.set()
        write(own, name, data)

    claims: list[lock.Claim] = []
    with pytest.raises(RunInUse, match="taken over"), hold(folder, nothing) as claim:  # noqa: PT012
        claims.append(claim)
        monkeypatch.setattr(Folder, "write", slow_write)
        wait()
    assert [name for name in read_claims(folder)] == [f"claim-{claim.generation + 1:015d}.json"]


def test_a_beat_that_dies_ends_its_driver(folder: Folder) -> None:
    told = iter([None, None])

    def progress() -> None:
        return next(told)

    with pytest.raises(RuntimeError, match="could not be renewed: StopIteration"), hold(folder, progress):
        wait()
    assert folder.list() == []


def test_a_claim_is_created_by_one_of_many(folder: Folder) -> None:
    assert folder.creates_exclusively()
    assert folder.create("one", b"a")
    assert not folder.create("one", b"b")
    assert folder.create("one", b"a"), "an own earlier try came through"
    assert folder.read("one") == b"a"
