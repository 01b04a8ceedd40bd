"""Random faults in random moments of runs of the toy world on three nodes: `python -m benchmarks.chaos --minutes 5`.

Every run must end with the rows and the bytes of one that nobody disturbed. Runs with models, and runs without, write
to S3 (a real server, with a proxy in front that can be out of order) and to a local folder in turn. A driver that is
killed, or gives up, is started again, as a person or `backoffLimit` would. Each fault happens once before any happens
again; after the time only those happen that have not happened yet, and the last run ends in peace.

replica, node, driver: killed. stall: the processes of a node stand still for a while. cut: the network of a node is cut
(where this machine allows networks of one's own: as root). pause: the driver stands still for longer than its lease and
is replaced. flip: a bit at rest. settings, weights: somebody goes on with others, which must be refused. images: one is
replaced, and comes back. clock: of drivers, set by up to a day. full: no room is left on the disk of local runs.
store_503, store_reset, store_slow: the store throttles, cuts connections, or answers late and out of order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos.history import Undisturbed, strangers
from benchmarks.chaos.nemeses import NEMESES, OF_DISK, OF_NETWORK, OF_STORE, Scene
from benchmarks.chaos.schedule import Schedule
from benchmarks.chaos.world import Kind, with_models, without_models
from benchmarks.table import show, write_json
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.commands.verify import run_command
from tests.support.fault_injection import ThreeNodes
from tests.support.network import HOST, Network, can_have_networks
from tests.support.s3_proxy import Proxy, proxy_to
from tests.support.s3_server import serve_s3

DISK_MIB = 64  # of local runs
LEASE_S = "12"  # of the drivers: one that is paused for longer is replaced
PAUSE_S = (2.0, 15.0)  # between two faults; a run that is hit without a pause would never end
MAX_STARTS = 40
LATEST = 1.3  # times the minutes: until then what has not happened yet happens still
TOLD = ("lost", "twice", "different", "fenced_writes_accepted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="of faults; the last run ends in peace")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faults and moments")
    parser.add_argument("--cheap", action="store_true", help="only runs without models (tests/support)")
    parser.add_argument("--json", help="write the figures and every operation to this file")
    arguments = parser.parse_args()
    own_disks_and_network_or_again()
    network = Network(2) if os.environ[OWN] == "network" else None
    if network is None:
        print("cut: left out, this machine allows no networks of one's own (root may have them)", flush=True)
    names = [name for name in NEMESES if network or name not in OF_NETWORK]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, pytest.MonkeyPatch.context() as patch:
        folder, disk = Path(name), Path(name) / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "chaos", str(disk)], check=True)
        (folder / "clock").write_text("0")
        patch.setenv("CHEAP_CLOCK_FILE", str(folder / "clock"))
        patch.setenv("FMWSSS_LEASE_S", LEASE_S)
        kinds = [without_models(folder / "cheap", patch)]
        if not arguments.cheap:
            kinds.append(with_models(folder / "models", patch))
        with (
            serve_s3(folder) as url,
            proxy_to(os.environ["AWS_ENDPOINT_URL"], HOST if network else "127.0.0.1") as proxy,
        ):
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            nodes = ThreeNodes(network)
            try:
                chaos = Chaos(kinds, [url, str(disk)], nodes, proxy, folder / "log", names, arguments.seed)
                chaos.run(60 * arguments.minutes)
            finally:
                nodes.shutdown()
                subprocess.run(["umount", "-l", str(disk)], check=True)
    show([{**chaos.found, **chaos.schedule.happened}], f"random faults, seed {arguments.seed}")
    result = {
        "runs": chaos.found["runs"],
        "faults": chaos.schedule.happened,
        **{key: chaos.found[key] for key in TOLD},
    }
    print(json.dumps(result))
    write_json(arguments.json, {**result, "operations": chaos.operations})
    if missing := chaos.schedule.missing():
        print(f"never happened: {', '.join(missing)}; give it more minutes", flush=True)


OWN = "CHAOS_HAS_OWN"


def own_disks_and_network_or_again() -> None:
    """Starts this program anew in name spaces of its own, whose disks and networks end with it."""
    if os.environ.get(OWN):
        return
    has_network = os.geteuid() == 0 and can_have_networks()
    os.environ[OWN] = "network" if has_network else "disks"
    rights = "-mn" if has_network else "-m" if os.geteuid() == 0 else "-Urm"
    os.execvp("unshare", ["unshare", rights, sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]])


class Chaos:
    """Runs, one after the other, and what happens to them.

    Args:
        kinds: of runs, in turn.
        places: folders that they write to, in turn.
        nodes: of the cluster.
        proxy: in front of the object store.
        log: what drivers print.
        names: of what may happen.
        seed: of what happens when.

    Attributes:
        found: counts of what must not be, and `runs`.
        schedule: of the faults.
        operations: a line for each thing that was done.
    """

    def __init__(
        self,
        kinds: list[Kind],
        places: list[str],
        nodes: ThreeNodes,
        proxy: Proxy,
        log: Path,
        names: list[str],
        seed: int,
    ) -> None:
        self.kinds, self.places, self.nodes, self.proxy, self.log = kinds, places, nodes, proxy, log
        self.chance = random.Random(seed)
        self.found: Counter[str] = Counter(dict.fromkeys(("runs", *TOLD, "not_of_receipt", "gave_up"), 0))
        self.schedule = Schedule(names, self.chance)
        self.operations: list[str] = []
        self._began_s = self._deadline_s = self._latest_s = 0.0

    def run(self, seconds: float) -> None:
        """Starts runs until the time is over and all has happened, and looks at each when it has ended."""
        undisturbed = [self._undisturbed(kind) for kind in self.kinds]
        self._began_s = time.monotonic()
        self._deadline_s, self._latest_s = self._began_s + seconds, self._began_s + LATEST * seconds
        number = 0
        while self._possible(""):
            index = number % len(self.kinds)
            # Each kind of run in each place.
            place = self.places[(number + number // len(self.kinds)) % len(self.places)]
            run = f"{place}/run-{number}"
            self._note(f"run {number}, {self.kinds[index].name}, {place.partition(':')[0]}")
            self._disturb(self.kinds[index], run)
            strange = strangers(run)
            self.found["not_of_receipt"] += len(strange)
            differ = undisturbed[index].compare(run, self.found)
            if strange or differ:
                self._note(f"of no receipt: {strange}; different: {differ}")
            self.found["runs"] += 1
            Folder(run).delete_all()
            number += 1

    def _undisturbed(self, kind: Kind) -> Undisturbed:
        run = f"{self.places[-1]}/undisturbed"
        if kind.start(run, self.nodes.address, self.log).wait():
            raise SystemExit(f"the run that nobody disturbed failed:\n{self.log.read_text()}")
        found = Undisturbed(run)
        Folder(run).delete_all()
        return found

    def _disturb(self, kind: Kind, run: str) -> None:
        """One run from its start to its end, however often its driver has to be started."""
        process = kind.start(run, self.nodes.address, self.log)
        scene = Scene(kind, run, process, self.nodes, self.proxy, self.chance, self.log, self.found)
        for _ in range(MAX_STARTS):
            while scene.process.poll() is None:
                self.nodes.replace_dead()
                name = self.schedule.draw(self._possible(run))
                try:
                    scene.process.wait(self.chance.uniform(*PAUSE_S) if name else None)
                except subprocess.TimeoutExpired:
                    assert name
                    has_happened = NEMESES[name](scene)
                    self.schedule.note(name, has_happened)
                    self._note(name if has_happened else f"no {name}")
            code = scene.process.returncode
            self._note(f"driver ended with {code}")
            # What was flipped after its last reader is found by no reader; what one finds a person is told to mend.
            is_whole = code < 0 or not scene.is_flipped or run_command(Run(Folder(run)), is_mended=True)
            if code == 0 and is_whole:
                return
            self.found["gave_up"] += code > 0
            self.nodes.replace_dead()
            scene.process = scene.start()
        raise SystemExit(f"a run was started {MAX_STARTS} times and did not end:\n{self.log.read_text()[-4000:]}")

    def _possible(self, run: str) -> list[str]:
        """What may happen to a run now; without one, whether anything is to happen still."""
        now_s, asked = time.monotonic(), list(self.schedule.happened)
        if now_s > self._deadline_s:
            asked = self.schedule.missing() if now_s < self._latest_s else []
        never = () if not run else OF_DISK if run.startswith("s3://") else OF_STORE
        return [name for name in asked if name not in never]

    def _note(self, what: str) -> None:
        self.operations.append(f"{time.monotonic() - self._began_s:.1f} s: {what}")
        print(self.operations[-1], flush=True)


if __name__ == "__main__":
    main()
