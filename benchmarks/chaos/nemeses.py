"""What can happen to a run while a driver is at work on it: each a function of the scene; whether it came to pass."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.chaos.world import Kind, replaced_image
from fmwsss.cluster.storage.driver_lock import read_claims
from fmwsss.cluster.storage.folder import Folder
from tests.support.fault_injection import ThreeNodes, end, outputs, start_elsewhere
from tests.support.s3_proxy import OutOfOrder, Proxy

CLOCK_S = 86_400.0
CUT_S = (2.0, 25.0)  # a node is given up after some fifteen seconds
OUT_OF_ORDER_S = (1.0, 5.0)
OTHERS_S = (5.0, 40.0)  # for which a driver works on with a replaced image
STALL_S = (2.0, 12.0)


@dataclass
class Scene:
    """A run, who works on it, and what it depends on.

    Attributes:
        kind: of the run.
        run: its folder.
        process: its driver, which is another one after some faults.
        nodes: of the cluster.
        proxy: in front of the object store.
        chance: what happens when.
        log: of the drivers.
        found: `fenced_writes_accepted` is counted here.
        is_flipped: whether a bit of the run was changed.
    """

    kind: Kind
    run: str
    process: subprocess.Popen[bytes]
    nodes: ThreeNodes
    proxy: Proxy
    chance: random.Random
    log: Path
    found: Counter[str]
    is_flipped: bool = False

    def start(self) -> subprocess.Popen[bytes]:
        """A driver of this run."""
        return self.kind.start(self.run, self.nodes.address, self.log)


def kill_node(scene: Scene) -> bool:
    """A machine vanishes, and after a moment there is another one."""
    scene.nodes.kill_node(scene.chance.randrange(2))
    return True


def kill_replica(scene: Scene) -> bool:
    """A worker process is killed."""
    return scene.nodes.kill_replica(scene.chance) is not None


def kill_driver(scene: Scene) -> bool:
    """The machine of the driver loses its power."""
    end(scene.process)
    return True


def stall(scene: Scene) -> bool:
    """The processes of a node stand still for a while."""
    scene.nodes.stall(scene.chance.randrange(2), scene.chance.uniform(*STALL_S))
    return True


def cut(scene: Scene) -> bool:
    """The network of a node is cut for a while; its processes work on."""
    scene.nodes.cut(scene.chance.randrange(2), scene.chance.uniform(*CUT_S))
    return True


def pause(scene: Scene) -> bool:
    """A driver stands still for longer than its lease, another takes over, the first one goes on.

    What it writes then is accepted if it ends as if the run were its own.
    """
    first = scene.process
    os.killpg(first.pid, signal.SIGSTOP)
    claims = set(read_claims(Folder(scene.run)))
    scene.process = start_elsewhere(scene.kind.start, scene.run, scene.nodes.address, scene.log)
    has_taken_over = False
    while scene.process.poll() is None and not has_taken_over:
        time.sleep(0.5)
        has_taken_over = bool(claims) and bool(set(read_claims(Folder(scene.run))) - claims)
    os.killpg(first.pid, signal.SIGCONT)
    scene.found["fenced_writes_accepted"] += first.wait() == 0 and has_taken_over
    return has_taken_over


def take_over_with_other_settings(scene: Scene) -> bool:
    """The driver dies, and somebody goes on with another setting, which must be refused."""
    return _go_on_refused(scene, scene.kind.others, False)


def replace_weights(scene: Scene) -> bool:
    """The driver dies, its weights become others of the same name, and that must be refused."""
    return _go_on_refused(scene, {}, True)


def _go_on_refused(scene: Scene, environment: dict[str, str], with_other_weights: bool) -> bool:
    end(scene.process)
    if not Folder(scene.run).exists("superpixels/_inputs.json"):
        return False
    before = outputs(scene.run)
    weights, others = scene.kind.weights
    ours = weights.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        if with_other_weights:
            weights.write_bytes(others.read_bytes())
        code = scene.start().wait()
        weights.write_bytes(ours)
    # Workers of the first one may still write the parts that they had begun.
    after = outputs(scene.run)
    is_changed = any(after.get(name) != data for name, data in before.items() if "/part-" in name)
    scene.found["fenced_writes_accepted"] += code == 0 or is_changed
    return True


def replace_image(scene: Scene) -> bool:
    """The driver dies, an image becomes another, a driver works on with that for a while and dies, and it is back."""
    end(scene.process)
    if not Folder(scene.run).exists("images/_inputs.json"):
        return False
    image, other = replaced_image(scene.kind.images)
    ours, about = image.read_bytes(), image.stat()
    image.write_bytes(other)
    scene.process = scene.start()
    try:
        scene.process.wait(scene.chance.uniform(*OTHERS_S))
    except subprocess.TimeoutExpired:
        end(scene.process)
    image.write_bytes(ours)
    os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns))  # a run notes it
    # It may have ended, with an image that is no longer there.
    scene.process = scene.start()
    return True


def flip(scene: Scene) -> bool:
    """The driver dies, and one bit of a file that a journal or a receipt tells of changes at rest."""
    end(scene.process)
    folder = Folder(scene.run)
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
    name = scene.chance.choice(there)
    data = bytearray(folder.read(name))
    data[scene.chance.randrange(len(data))] ^= 1 << scene.chance.randrange(8)
    folder.write(name, bytes(data))
    scene.is_flipped = True
    return True


def step_clock(scene: Scene) -> bool:
    """The clock of drivers is set by up to a day, in either direction."""
    Path(os.environ["CHEAP_CLOCK_FILE"]).write_text(str(scene.chance.uniform(-CLOCK_S, CLOCK_S)))
    return True


def fill_disk(scene: Scene) -> bool:
    """No byte more goes to the disk of local runs for a while."""
    filler = Path(scene.run).parent / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError as error:
        time.sleep(scene.chance.uniform(*OUT_OF_ORDER_S))
        return error.errno == errno.ENOSPC
    finally:
        filler.unlink(missing_ok=True)


def _out_of_order(mood: OutOfOrder) -> Callable[[Scene], bool]:
    def happen(scene: Scene) -> bool:
        before = scene.proxy.num_refused
        scene.proxy.mood = mood
        time.sleep(scene.chance.uniform(*OUT_OF_ORDER_S))
        scene.proxy.mood = None
        return scene.proxy.num_refused > before

    return happen


OF_DISK: dict[str, Callable[[Scene], bool]] = {"full": fill_disk}
OF_STORE: dict[str, Callable[[Scene], bool]] = {
    "store_503": _out_of_order("503"),
    "store_reset": _out_of_order("reset"),
    "store_slow": _out_of_order("slow"),
}
OF_NETWORK: dict[str, Callable[[Scene], bool]] = {"cut": cut}
NEMESES: dict[str, Callable[[Scene], bool]] = {
    "replica": kill_replica,
    "node": kill_node,
    "driver": kill_driver,
    "stall": stall,
    "pause": pause,
    "flip": flip,
    "settings": take_over_with_other_settings,
    "weights": replace_weights,
    "images": replace_image,
    "clock": step_clock,
    **OF_DISK,
    **OF_STORE,
    **OF_NETWORK,
}
