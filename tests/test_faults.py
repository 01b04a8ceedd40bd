"""What happens to long runs: machines, processes, stores and disks fail. Afterwards: the same rows, the same bytes.

On three nodes, with everything but the models (tests/support/cheap_stages.py), and an S3 server behind a proxy.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from tests.support.cheap_stages import NUM_IMAGES, SETTINGS, SHARD_ROWS, STAGES
from tests.support.fault_injection import DEMO, ROOT, ThreeNodes, end, has_begun, outputs, rows, start_cheap, wait_until
from tests.support.s3_proxy import Proxy, proxy_to

NUM_PARTS = NUM_IMAGES // SHARD_ROWS
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Place:
    """Three nodes whose object store is reached through a proxy."""

    nodes: ThreeNodes
    proxy: Proxy
    address: str
    url: str


@pytest.fixture(scope="module")
def place(s3_url: str) -> Iterator[Place]:
    with proxy_to(os.environ["AWS_ENDPOINT_URL"]) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("FMWSSS_PATIENCE_S", "8")
        patch.setenv("PYTHONPATH", str(ROOT))
        nodes = ThreeNodes()
        try:
            yield Place(nodes, proxy, nodes.address, s3_url)
        finally:
            nodes.shutdown()


@pytest.fixture(scope="module")
def calm(place: Place, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    process = start_cheap(str(folder / "run"), place.address, folder / "log")
    assert process.wait(900) == 0, (folder / "log").read_text()
    ids = [f"toy-{seed:06d}" for seed in range(NUM_IMAGES)]
    assert rows(str(folder / "run")) == dict.fromkeys(STAGES, ids)
    return str(folder / "run")


@pytest.mark.timeout(1800)
def test_a_run_that_loses_a_node_in_every_stage_its_replicas_and_its_driver(
    place: Place, calm: str, tmp_path: Path
) -> None:
    run, log, chance = str(tmp_path / "run"), tmp_path / "log", random.Random(0)
    process = start_cheap(run, place.address, log)
    try:
        for stage in STAGES:
            wait_until(has_begun(run, stage), process)
            place.nodes.kill_node(0)
            if stage != "images":
                wait_until(lambda: place.nodes.kill_replica(chance) is not None, process)
                wait_until(lambda stage=stage: bool(Folder(run).child(stage).list("part-")), process)
                end(process)
                assert Run(Folder(run)).receipt(stage) is None
                process = start_cheap(run, place.address, log)
        assert process.wait(900) == 0, log.read_text()
    finally:
        end(process)
    assert rows(run) == rows(calm)
    assert outputs(run) == outputs(calm)
    assert Run(Folder(run)).failures().num_rows == 0


@pytest.mark.timeout(1200)
def test_an_object_store_that_is_out_of_order(place: Place, calm: str, tmp_path: Path) -> None:
    run, log, proxy = f"{place.url}/faults/{tmp_path.name}", tmp_path / "log", place.proxy
    # Connections are cut for a while, and then it throttles for good.
    process = start_cheap(run, place.address, log)
    try:
        wait_until(has_begun(run, "images"), process)
        proxy.mood = "reset"
        time.sleep(2)
        proxy.mood = None
        wait_until(has_begun(run, "superpixels"), process)
        assert Run(Folder(run)).receipt("images")
        proxy.mood = "503"
        assert process.wait(600) == 2, log.read_text()
    finally:
        proxy.mood = None
        end(process)
    last = log.read_text().splitlines()[-1]
    assert last.startswith("fmwsss: can't ")
    assert run in last
    assert "still failing after" in last
    # It comes back, throttles for a while, and works.
    num_refused = proxy.num_refused
    assert num_refused > 0
    process = start_cheap(run, place.address, log)
    try:
        wait_until(lambda: len(Folder(run).child("superpixels").list("part-")) > 1, process)
        proxy.mood = "503"
        time.sleep(2)
        proxy.mood = None
        assert process.wait(600) == 0, log.read_text()
    finally:
        proxy.mood = None
        end(process)
    assert proxy.num_refused > num_refused
    assert rows(run) == rows(calm)
    assert outputs(run) == outputs(calm)
    told = log.read_text() + "".join(Folder(run).read(name).decode() for name in Folder(run).list() if ".json" in name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name] not in told


@pytest.mark.timeout(600)
def test_requests_are_counted(place: Place, tmp_path: Path) -> None:
    """Objects cost money by the request: none of them may be made once an image but those that carry its bytes."""
    run, log = f"{place.url}/requests/{tmp_path.name}", tmp_path / "log"
    assert start_cheap(run, place.address, log, ["images"]).wait(400) == 0, log.read_text()
    place.proxy.requests.clear()
    assert start_cheap(run, place.address, log, ["superpixels"]).wait(400) == 0, log.read_text()
    requests = [request for request in place.proxy.requests if "_driver" not in request]
    lists = [request for request in requests if "list-type=2" in request]
    # The journal is written by the clock, and so the more often the slower the machine.
    puts = [request for request in requests if request.startswith("PUT ") and "_journal.json" not in request]
    gets = [request for request in requests if request.startswith(("GET ", "HEAD ")) and "part-" in request]
    # A start lists claims, spending and folders of stages; one for each part were 12 more.
    assert len(lists) <= 16, lists
    # One for each part; the manifest, the inputs, the receipt, the timeline.
    assert len(puts) == NUM_PARTS + 4, puts
    # Of each part of images/ its size, its footer, and the columns that are used.
    assert len(gets) <= 6 * NUM_PARTS, gets
    assert not [request for request in requests if "toy-0" in request]


@pytest.mark.timeout(600)
def test_two_drivers_on_one_run_and_its_state_from_outside(place: Place, tmp_path: Path) -> None:
    run, log = str(tmp_path / "run"), tmp_path / "log"
    status = [sys.executable, "-m", "fmwsss.jobs", "status", run]
    first = start_cheap(run, place.address, log, ["images", "superpixels"])
    try:
        wait_until(has_begun(run, "superpixels"), first)
        second = start_cheap(run, place.address, tmp_path / "second")
        told = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout
        assert second.wait(300) == 2
        assert f"is in use: a driver on {os.uname().nodename} (process {first.pid}" in (tmp_path / "second").read_text()
        assert f"process {first.pid}" in told
        assert first.wait(600) == 0, log.read_text()
    finally:
        end(first)
    told = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout
    assert "no driver works on it" in told
    lines = [line.split("│")[1:4] for line in told.splitlines() if "│" in line]
    states = {stage.strip(): (state.strip(), done.strip()) for stage, state, done in lines}
    assert states == {
        "images": ("complete", str(NUM_IMAGES)),
        "superpixels": ("complete", str(NUM_IMAGES)),
        "seeds/coarse": ("waiting", ""),
    }


@pytest.mark.timeout(600)
def test_a_disk_that_is_full(calm: str, tmp_path: Path) -> None:
    """A small disk of its own, in a name space of its own; then there is room again."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let users mount disks in a name space of their own")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    command = f"{sys.executable} -m fmwsss.jobs run {DEMO} run={disk}/run {' '.join(SETTINGS)} --only images"
    script = f"""
        mount -t tmpfs -o size=250k tmpfs {disk} && cd {ROOT} || exit 99
        {command}; echo first: $?
        mount -o remount,size=20m {disk}
        {command}; echo second: $?
        cp -r {disk}/run {copy}
    """
    result = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=500)
    assert "first: 2" in result.stdout, result.stderr
    assert "no space is left there" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("fmwsss: ")]) == 1
    assert "second: 0" in result.stdout, result.stderr
    assert outputs(str(copy)) == {name: data for name, data in outputs(calm).items() if name.startswith("images/")}
