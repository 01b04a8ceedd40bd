"""Random faults in random moments of runs of the toy world on three nodes: `python -m benchmarks.chaos --minutes 5`.

Every run must end with the rows and the bytes of one that nobody disturbed. Runs write to S3 (a real server, with a
proxy in front that can be out of order) and to a local folder in turn. A driver that is killed, or gives up, is started
again, as a person or `backoffLimit` would.

replica, node, driver: killed. stall: the processes of a node stand still for a while, as behind a network that is cut
(nodes share one address here, so their network itself can't be). pause: the driver stands still for longer than its
lease and is replaced. flip: a bit at rest. store_503, store_reset: the store is out of order. full: no room is left on
the disk of local runs. Of cheap runs also settings, weights: somebody goes on with others, which must be refused; and
clock: the clock of drivers is set by up to a day.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import subprocess
import sys
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

FAULTS = ("replica", "node", "driver", "stall", "store_503", "store_reset", "pause", "flip", "full")
OF_CHEAP = ("settings", "weights", "clock")
OF_STORE = ("store_503", "store_reset")
DISK_MIB = 64  # of local runs
STALL_S = (2.0, 12.0)
CLOCK_S = 86_400.0
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
    own_disk_or_again()
    possible = (*FAULTS, *(OF_CHEAP if arguments.cheap else ()))
    faults: Counter[str] = Counter(dict.fromkeys(possible, 0))
    found: Counter[str] = Counter(
        runs=0, lost=0, twice=0, different=0, not_of_receipt=0, gave_up=0, fenced_writes_accepted=0
    )
    operations: list[str] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, pytest.MonkeyPatch.context() as patch:
        folder, disk = Path(name), Path(name) / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "chaos", str(disk)], check=True)
        for variable, content in {"CHEAP_CLOCK_FILE": "0", "CHEAP_WEIGHTS_FILE": "ours"}.items():
            (folder / variable).write_text(content)
            patch.setenv(variable, str(folder / variable))
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
                    run = f"{url}/run-{number}" if number % 2 == 0 else str(disk / f"run-{number}")
                    disturb(start, run, nodes, proxy, chance, folder / "log", faults, deadline, found, operations)
                    found["not_of_receipt"] += len(strangers(run))
                    compare(run, expected_rows, expected_bytes, found)
                    found["runs"] += 1
                    Folder(run).delete_all()
            finally:
                nodes.shutdown()
                subprocess.run(["umount", "-l", str(disk)], check=True)
    show([{**found, **faults}], f"random faults, seed {arguments.seed}")
    told = ("lost", "twice", "different", "not_of_receipt", "fenced_writes_accepted")
    result = {"runs": found["runs"], "faults": dict(faults), **{key: found[key] for key in told}}
    print(json.dumps(result))
    write_json(arguments.json, {**result, "operations": operations})


def own_disk_or_again() -> None:
    """Starts this program anew in a name space of its own, whose disks end with it."""
    if os.environ.get("CHAOS_HAS_OWN_DISKS"):
        return
    os.environ["CHAOS_HAS_OWN_DISKS"] = "1"
    rights = "-m" if os.geteuid() == 0 else "-Urm"
    os.execvp("unshare", ["unshare", rights, sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]])


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
    operations: list[str],
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
                without = ("full",) if run.startswith("s3://") else OF_STORE
                fault = chance.choice([fault for fault in faults if fault not in without])
                mends |= fault == "flip"
                if fault == "pause":
                    process, is_accepted = pause(start, run, nodes, process, log)
                    found["fenced_writes_accepted"] += is_accepted
                    has_happened = True
                elif fault in ("settings", "weights"):
                    has_happened, is_accepted = go_on_with_others(fault, start, run, nodes, process, log)
                    found["fenced_writes_accepted"] += is_accepted
                else:
                    has_happened = inject(fault, process, nodes, proxy, chance, run)
                faults[fault] += has_happened
                operations.append(f"{time.monotonic():.1f} s {run}: {fault if has_happened else f'no {fault}'}")
        operations.append(f"{time.monotonic():.1f} s {run}: ended with {process.returncode}")
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


def go_on_with_others(
    fault: str,
    start: Callable[[str, str, Path], subprocess.Popen[bytes]],
    run: str,
    nodes: ThreeNodes,
    first: subprocess.Popen[bytes],
    log: Path,
) -> tuple[bool, bool]:
    """The driver dies, and somebody goes on with another setting, or with other weights under the same name.

    Returns:
        whether there was something to go on with, and whether that was let in.
    """
    end(first)
    if not Folder(run).exists("superpixels/_inputs.json"):
        return False, False
    before = outputs(run)
    with pytest.MonkeyPatch.context() as patch:
        if fault == "settings":
            patch.setenv("CHEAP_SETTING", "another")
        weights = Path(os.environ["CHEAP_WEIGHTS_FILE"])
        weights.write_text("others" if fault == "weights" else "ours")
        second = start(run, nodes.address, log)
        code = second.wait()
        weights.write_text("ours")
    # Workers of the first one may still write the parts that they had begun.
    after = outputs(run)
    is_changed = any(after.get(name) != data for name, data in before.items() if "/part-" in name)
    return True, code == 0 or is_changed


def strangers(run: str) -> list[str]:
    """History: files of stages that no receipt tells of, or that are not what it tells; stages without one."""
    found, ledger = [], Run(Folder(run))
    for stage in ledger.stages():
        receipt, folder = ledger.receipt(stage), ledger.folder.child(stage)
        if receipt is None:
            found.append(stage)
            continue
        told = {file.name: file for file in receipt.files}
        there = folder.list()
        found += [f"{stage}/{name}" for name in there if name.startswith("part-") and name not in told]
        whole = {name for name, file in told.items() if name in there and file.is_whole(folder.read(name))}
        found += [f"{stage}/{name}" for name in told if name not in whole]
    return found


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
    elif fault == "stall":
        nodes.stall(chance.randrange(2), chance.uniform(*STALL_S))
    elif fault == "clock":
        Path(os.environ["CHEAP_CLOCK_FILE"]).write_text(str(chance.uniform(-CLOCK_S, CLOCK_S)))
    elif fault == "full":
        return fill_disk(Path(run).parent, chance.uniform(*OUT_OF_ORDER_S))
    else:
        before = proxy.num_refused
        proxy.mood = "503" if fault == "store_503" else "reset"
        time.sleep(chance.uniform(*OUT_OF_ORDER_S))
        proxy.mood = None
        return proxy.num_refused > before
    return True


def fill_disk(disk: Path, seconds: float) -> bool:
    """No byte more goes to a disk for a while; whether it came to that."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError as error:
        time.sleep(seconds)
        return error.errno == errno.ENOSPC
    finally:
        filler.unlink(missing_ok=True)


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
