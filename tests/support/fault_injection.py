"""Runs of the toy world on several nodes, and what can happen to them; for the tests and for benchmarks/chaos."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from tests.support.network import HOST, Network

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")
SMALL = [
    "dataset.num_images=10", "shard_rows=3", "propose.points_per_side=6", "preview.num_images=4",
    "learn.classification.epochs=1", "learn.segmentation.epochs=1",
    "learn.classification.batch_size=4", "learn.segmentation.batch_size=4",
]  # fmt: skip
STAGES = ["images", "superpixels", "prompts/classification", "seeds/coarse", "prompts/segmentation", "seeds/fine"]
WORKERS = ("MapWorker", "MapBatches", "RayTrainWorker", "TrainController")  # as their processes are named
HEALTH_CHECK = {"period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 5}  # a node is given up in some 15 s
LOGS = "/logs/"  # of TensorBoard: they hold times
TOLD_APART = ("_receipt.json", "_inputs.json", "manifest.json", "metrics.json", "index.html")


class ThreeNodes:
    """A head and two nodes on this machine; a node that is killed is replaced.

    Args:
        network: of two machines, which the nodes are then on.
    """

    def __init__(self, network: Network | None = None) -> None:
        # The nodes' workers are to import these packages, wherever others are installed.
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ.setdefault("RAY_worker_niceness", "0")
        self.network = network
        head: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False}
        if network:
            head["node_ip_address"] = HOST
            for name, number in HEALTH_CHECK.items():
                os.environ.setdefault(f"RAY_health_check_{name}", str(number))
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add_node(index) for index in range(2)]

    def _add_node(self, index: int) -> Any:
        if self.network is None:
            return self.cluster.add_node(num_cpus=2)
        with self.network.inside(index):
            return self.cluster.add_node(num_cpus=2, node_ip_address=self.network.addresses[index])

    @property
    def address(self) -> str:
        """For `cluster.address`."""
        return str(self.cluster.address)

    def kill_node(self, index: int) -> None:
        """A machine vanishes, without a word, and after a moment there is another one."""
        self.cluster.remove_node(self.nodes[index], allow_graceful=False)
        self.nodes[index] = self._add_node(index)

    def stall(self, index: int, seconds: float) -> None:
        """The processes of a node stand still for a while."""
        raylet = self.nodes[index].all_processes["raylet"][0].process
        stopped = [raylet.pid, *(pid for pid, _, parent in self._workers() if parent == raylet.pid)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(seconds)

    def cut(self, index: int, seconds: float) -> None:
        """Nothing reaches a node for a while, and it reaches nothing; its processes go on. Needs a network."""
        assert self.network
        self.network.cut(index)
        time.sleep(seconds)
        self.network.mend(index)

    def replace_dead(self) -> None:
        """A node that gave up, or that was given up, is replaced by another."""
        for index, node in enumerate(self.nodes):
            if node.all_processes["raylet"][0].process.poll() is not None:
                self.kill_node(index)

    def kill_busy_node(self) -> str | None:
        """As `kill_node`, of a node where something is done; returns the name of a worker there, None if all idle."""
        raylets = {node: node.all_processes["raylet"][0].process.pid for node in self.nodes}
        for _, name, parent in self._workers():
            for index, node in enumerate(self.nodes):
                if raylets[node] == parent and any(kind in name for kind in WORKERS):
                    self.kill_node(index)
                    return name
        return None

    def kill_replica(self, chance: random.Random) -> str | None:
        """A worker process is killed: an actor with a model, or a task; returns its name, None if there was none."""
        workers = [(pid, name) for pid, name, _ in self._workers() if any(kind in name for kind in WORKERS)]
        replicas = [worker for worker in workers if "_Replica" in worker[1]]
        for pid, name in chance.sample(replicas or workers, k=min(1, len(workers))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return name
        return None

    def _workers(self) -> Iterator[tuple[int, str, int]]:
        raylets = {
            info.process.pid for node in self.cluster.list_all_nodes() for info in node.all_processes.get("raylet", [])
        }
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets:
                    name = (path / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                    yield int(path.name), name, parent

    def shutdown(self) -> None:
        """Ends every process of the cluster."""
        self.cluster.shutdown()


def start_run(
    run: str,
    address: str,
    log: Path,
    more: Sequence[str] = (),
    config: str = DEMO,
    module: str = "fmwsss.jobs",
) -> subprocess.Popen[bytes]:
    """`fmwsss run` of a few scenes in a process of its own, its output appended to a file."""
    where = [f"run={run}", f"cluster.address={address}", "cluster.num_replicas=2", "cluster.checkpoint_every_s=0"]
    command = [sys.executable, "-m", module, "run", config, *SMALL, *where, *more]
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)


def start_elsewhere(start: Callable[..., subprocess.Popen[bytes]], *arguments: object) -> subprocess.Popen[bytes]:
    """A driver that takes itself for one of another machine: it can't see whether the first one's process lives."""
    host = f"host{random.randrange(10**9)}"
    real = subprocess.Popen

    def popen(command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        words = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *command]
        return real(words, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        return start(*arguments)


def start_cheap(run: str, address: str, log: Path, stages: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """A run without models (tests/support/cheap_stages.py) in a process of its own, its output appended to a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.cheap_stages", run, address, *stages],
            cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], patience_s: float = 600) -> None:
    """Waits for something to happen in a run; an error if the run ends before."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert process.poll() is None, "the run ended before anything could happen to it"
        assert time.monotonic() < deadline, "the run does not come to where something should happen to it"
        time.sleep(0.05)


def has_begun(run: str, stage: str) -> Callable[[], bool]:
    """Whether a stage of a run has begun; a condition for `wait_until`."""
    return lambda: Folder(run).child(stage).exists("_inputs.json")


def end(process: subprocess.Popen[bytes]) -> None:
    """The machine of the driver loses its power."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outputs(run: str) -> dict[str, bytes]:
    """Every file of a run that must be the same wherever and however it was made."""
    folder = Folder(run)
    names = [
        name
        for name in folder.list()
        if not name.endswith(TOLD_APART) and LOGS not in name and not name.startswith(("timeline/", "spending/"))
    ]
    return {name: folder.read(name) for name in names}


def rows(run: str) -> dict[str, list[str]]:
    """The ids in every stage that has parts, in order."""
    folder = Folder(run)
    ids = {}
    for stage in Run(folder).stages():
        parts = folder.child(stage).list("part-")
        tables = [folder.child(stage).read_table(part, columns=["image_id"]) for part in parts]
        ids[stage] = [image_id for table in tables for image_id in table["image_id"].to_pylist()]
    return ids
