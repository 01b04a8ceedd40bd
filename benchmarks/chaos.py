"""Random faults in random moments of runs of the toy world on three nodes: `python -m benchmarks.chaos --minutes 5`.

Every run must end with the rows and the bytes of one that nobody disturbed. Runs write to S3 (a real server, with a
proxy in front that can be out of order) and to a local folder in turn. A driver that is killed, or gives up, is started
again, as a person or `backoffLimit` would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.table import show, write_json
from fmwsss.cluster.storage.driver_lock import read_claims
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.commands.verify import run_command
from tests.support.fault_injection import ThreeNodes, end, outputs, rows, start_cheap, start_elsewhere, start_run
from tests.support.s3_proxy import Proxy, proxy_to
from tests.support.s3_server import serve_s3

FAULTS = ("replica", "node", "driver", "store_503", "store_reset", "pause", "flip")
LEASE_S = "12"  # of the drivers: one that is paused for longer is replaced
STAGES = ("images", "superpixels", "prompts", "seeds")
PAUSE_S = (5.0, 30.0)  # between two faults; a run that is hit without a pause would never end
OUT_OF_ORDER_S = (1.0, 5.0)
MAX_STARTS = 30
ONLY = [word for stage in STAGES for word in ("--only", stage)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="no fault after this time: the last run ends in peace")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faults and moments")
    parser.add_argument("--cheap", action="store_true", help="runs without models (tests/support): many more of them")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    start = start_cheap if arguments.cheap else partial(start_run, more=ONLY)
    faults: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    found: Counter[str] = Counter(runs=0, lost=0, twice=0, different=0, gave_up=0, fenced_writes_accepted=0)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        with serve_s3(folder) as url, proxy_to(os.environ["AWS_ENDPOINT_URL"]) as proxy:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            patch.setenv("FMWSSS_LEASE_S", LEASE_S)
            nodes = ThreeNodes()
            try:
                undisturbed = str(folder / "undisturbed")
                process = start(undisturbed, nodes.address, folder / "log")
                if process.wait():
                    raise SystemExit(f"the run that nobody disturbed failed:\n{(folder / 'log').read_text()}")
                expected_rows, expected_bytes = rows(undisturbed), outputs(undisturbed)
                deadline = time.monotonic() + 60 * arguments.minutes
                while time.monotonic() < deadline:
                    number = found["runs"]
                    run = f"{url}/run-{number}" if number % 2 == 0 else str(folder / f"run-{number}")
                    disturb(start, run, nodes, proxy, chance, folder / "log", faults, deadline, found)
                    compare(run, expected_rows, expected_bytes, found)
                    found["runs"] += 1
                    Folder(run).delete_all()
            finally:
                nodes.shutdown()
    show([{**found, **faults}], f"random faults, seed {arguments.seed}")
    result = {"runs": found["runs"], "faults": dict(faults)}
    write_json(
        arguments.json,
        {**result, **{key: found[key] for key in ("lost", "twice", "different", "fenced_writes_accepted")}},
    )


def disturb(
    start: Callable[[str, str, Path], subprocess.Popen[bytes]],
    run: str,
    nodes: ThreeNodes,
    proxy: Proxy,
    chance: random.Random,
    log: Path,
    faults: Counter[str],
    deadline: float,
    found: Counter[str],
) -> None:
    """One run from its start to its end, however often its driver has to be started.

    Nothing happens to it after the deadline, a time of the monotonic clock.
    """
    mends = False
    for _ in range(MAX_STARTS):
        process = start(run, nodes.address, log)
        while process.poll() is None:
            pause_s = chance.uniform(*PAUSE_S)
            try:
                process.wait(None if time.monotonic() + pause_s > deadline else pause_s)
            except subprocess.TimeoutExpired:
                fault = chance.choice([fault for fault in FAULTS if run.startswith("s3://") or "store" not in fault])
                if fault == "pause":
                    process, is_accepted = pause(start, run, nodes, process, log)
                    found["fenced_writes_accepted"] += is_accepted
                    faults[fault] += 1
                    continue
                mends |= fault == "flip"
                faults[fault] += inject(fault, process, nodes, proxy, chance, run)
        # What was flipped after its last reader is found by no reader.
        is_whole = not mends or run_command(Run(Folder(run)), is_mended=True)
        if process.returncode == 0 and is_whole:
            return
        found["gave_up"] += process.returncode > 0
    raise SystemExit(f"a run was started {MAX_STARTS} times and did not end:\n{log.read_text()[-4000:]}")


def pause(
    start: Callable[[str, str, Path], subprocess.Popen[bytes]],
    run: str,
    nodes: ThreeNodes,
    first: subprocess.Popen[bytes],
    log: Path,
) -> tuple[subprocess.Popen[bytes], bool]:
    """A driver stands still for longer than its lease, another takes over, the first one goes on.

    Returns:
        the second driver, and whether anything of the first one was accepted after that: it ended as if the run were
        its own.
    """
    os.killpg(first.pid, signal.SIGSTOP)
    claims = set(read_claims(Folder(run)))
    second = start_elsewhere(start, run, nodes.address, log)
    has_taken_over = False
    while second.poll() is None and not has_taken_over:
        time.sleep(0.5)
        has_taken_over = bool(claims) and bool(set(read_claims(Folder(run))) - claims)
    os.killpg(first.pid, signal.SIGCONT)
    return second, first.wait() == 0 and has_taken_over


def flip(run: str, chance: random.Random) -> bool:
    """One bit of a file that a journal or a receipt tells of changes at rest; whether there was one."""
    folder = Folder(run)
    told = []
    for name in folder.list():
        stage, _, file = name.rpartition("/")
        if file in ("_receipt.json", "_journal.json"):
            content = json.loads(folder.read(name))
            files = content["files"] if isinstance(content, dict) else content
            told += [f"{stage}/{entry['name']}" for entry in files]
    there = sorted(set(told) & set(folder.list()))
    if not there:
        return False
    name = chance.choice(there)
    data = bytearray(folder.read(name))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    folder.write(name, bytes(data))
    return True


def inject(
    fault: str, process: subprocess.Popen[bytes], nodes: ThreeNodes, proxy: Proxy, chance: random.Random, run: str
) -> bool:
    """Lets something happen; whether it did (there may be no replica to kill, or no request to refuse)."""
    if fault == "node":
        nodes.kill_node(chance.randrange(2))
    elif fault == "replica":
        return nodes.kill_replica(chance) is not None
    elif fault == "driver":
        end(process)
    elif fault == "flip":
        end(process)
        return flip(run, chance)
    else:
        before = proxy.num_refused
        proxy.mood = "503" if fault == "store_503" else "reset"
        time.sleep(chance.uniform(*OUT_OF_ORDER_S))
        proxy.mood = None
        return proxy.num_refused > before
    return True


def compare(
    run: str, expected_rows: dict[str, list[str]], expected_bytes: dict[str, bytes], found: Counter[str]
) -> None:
    """Adds what a run has lost, has twice, or has in other bytes."""
    mine, files = rows(run), outputs(run)
    for stage, expected in expected_rows.items():
        ids = Counter(mine.get(stage, []))
        found["lost"] += len(set(expected) - ids.keys())
        found["twice"] += sum(count - 1 for count in ids.values())
    found["different"] += sum(files.get(name) != expected_bytes.get(name) for name in files.keys() | expected_bytes)


if __name__ == "__main__":
    main()
