"""What happens to long runs: machines, processes, stores and disks fail. Afterwards: the same rows, the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ledger import Run
from cluster.storage import Folder
from tests.faults import (
    DEMO,
    ROOT,
    SMALL,
    STAGES,
    ThreeNodes,
    end,
    has_begun,
    outputs,
    rows,
    start_run,
    wait_until,
)
from tests.proxy import proxy_to
from tests.s3 import ACCESS_KEY, SECRET_KEY


@pytest.fixture(scope="module")
def nodes() -> Iterator[ThreeNodes]:
    nodes = ThreeNodes()
    yield nodes
    nodes.shutdown()


@pytest.mark.timeout(1800)
def test_a_run_that_loses_a_node_in_every_stage_its_replicas_and_its_driver(
    nodes: ThreeNodes, undisturbed: str, tmp_path: Path
) -> None:
    run, log, chance = str(tmp_path / "run"), tmp_path / "log", random.Random(0)
    num_killed = 0
    process = start_run(run, nodes.address, log)
    try:
        for stage in STAGES:
            wait_until(has_begun(run, stage), process)
            nodes.kill_node(0)
            if stage in ("superpixels", "seeds/coarse"):
                wait_until(lambda: bool(nodes.kill_replica(chance)), process)
                num_killed += 1
            if stage in ("prompts/classification", "seeds/fine"):
                end(process)
                assert Run(Folder(run)).receipt(stage) is None
                process = start_run(run, nodes.address, log)
        assert process.wait(1200) == 0, log.read_text()
    finally:
        end(process)
    assert num_killed == 2
    assert rows(run) == rows(undisturbed)
    assert outputs(run) == outputs(undisturbed)
    assert Run(Folder(run)).failures().num_rows == 0


@pytest.mark.timeout(1200)
def test_an_object_store_that_is_out_of_order(
    s3_url: str, undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = f"{s3_url}/faults/{tmp_path.name}", tmp_path / "log"
    only = ["--only", "ingest", "--only", "propose"]
    direct = os.environ["AWS_ENDPOINT_URL"]
    with proxy_to(direct) as proxy:
        environment = {"AWS_ENDPOINT_URL": proxy.url, "FMWSSS_PATIENCE_S": "8"}
        # Connections are cut for a while, and then it throttles for good.
        process = start_run(run, None, log, *only, env=environment)
        wait_until(has_begun(run, "images"), process)
        proxy.mood = "reset"
        time.sleep(2)
        proxy.mood = None
        wait_until(has_begun(run, "superpixels"), process)
        assert Run(Folder(run)).receipt("images")
        proxy.mood = "503"
        began_s = time.monotonic()
        assert process.wait(400) == 2
        assert time.monotonic() - began_s < 300
        last = log.read_text().splitlines()[-1]
        assert last.startswith("fmwsss: can't ")
        assert run in last
        assert "still failing after" in last
        # It comes back, throttles for a while, and works.
        proxy.mood, num_refused = None, proxy.num_refused
        process = start_run(run, None, log, *only, env=environment)
        wait_until(lambda: proxy.requests[-1].startswith("GET") and "superpixels" in proxy.requests[-1], process)
        proxy.mood = "503"
        time.sleep(2)
        proxy.mood = None
        assert process.wait(600) == 0, log.read_text()
        assert proxy.num_refused > num_refused > 2
    mine, theirs = outputs(run), outputs(undisturbed)
    assert mine
    assert mine == {name: data for name, data in theirs.items() if name.startswith(("images/", "superpixels/"))}
    told = log.read_text() + "".join(Folder(run).read(name).decode() for name in Folder(run).list() if ".json" in name)
    assert ACCESS_KEY not in told
    assert SECRET_KEY not in told


@pytest.mark.timeout(1200)
def test_a_disk_that_is_full(undisturbed: str, tmp_path: Path) -> None:
    """A small disk of its own, in a name space of its own; then there is room again."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let users mount disks in a name space of their own")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    command = f"{sys.executable} -m jobs.cli run {DEMO} run={disk}/run {' '.join(SMALL)} --only ingest"
    script = f"""
        mount -t tmpfs -o size=120k tmpfs {disk} && cd {ROOT} || exit 99
        {command}; echo first: $?
        mount -o remount,size=20m {disk}
        {command}; echo second: $?
        cp -r {disk}/run {copy}
    """
    result = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=900)
    assert "first: 2" in result.stdout, result.stderr
    assert "no space is left there" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("fmwsss: ")]) == 1
    assert "second: 0" in result.stdout, result.stderr
    theirs = outputs(undisturbed)
    assert outputs(str(copy)) == {name: data for name, data in theirs.items() if name.startswith("images/")}


@pytest.mark.timeout(1200)
def test_requests_are_counted(s3_url: str, undisturbed: str, tmp_path: Path) -> None:
    """Objects cost money by the request: none of them may be made once an image but those that carry its bytes."""
    run = f"{s3_url}/requests/{tmp_path.name}"
    folder = Folder(run)
    for name, data in everything(undisturbed).items():
        if not name.startswith(("seeds/", "reports/", "prompts/segmentation")):
            folder.write(name, data)
    num_parts, num_images = 4, 10
    with proxy_to(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        log = tmp_path / "log"
        process = start_run(
            run, None, log, "--only", "seed-coarse", "seeds.png=false", env={"AWS_ENDPOINT_URL": proxy.url}
        )
        assert process.wait(600) == 0, log.read_text()
        requests = [request for request in proxy.requests if "/_driver" not in request]
    lists = [request for request in requests if "list-type=2" in request]
    puts = [request for request in requests if request.startswith("PUT ")]
    gets = [request for request in requests if request.startswith(("GET ", "HEAD ")) and "part-" in request]
    assert len(lists) < num_images, lists
    # One for each part; the inputs, the receipt, the manifest and the timeline.
    assert len(puts) == num_parts + 4, puts
    # Of images/ its size, its footer and three columns that lie apart; superpixels/ as a whole.
    assert len(gets) <= 8 * num_parts, gets
    assert not [request for request in requests if "toy-0" in request or ".png" in request]


def everything(run: str) -> dict[str, bytes]:
    folder = Folder(run)
    return {name: folder.read(name) for name in folder.list()}


@pytest.mark.timeout(1200)
def test_two_drivers_on_one_run_and_its_state_from_outside(nodes: ThreeNodes, tmp_path: Path) -> None:
    run, log = str(tmp_path / "run"), tmp_path / "log"
    first = start_run(run, nodes.address, log, "--only", "ingest", "--only", "propose")
    try:
        wait_until(has_begun(run, "superpixels"), first)
        second = start_run(run, nodes.address, tmp_path / "second", "--from", "ingest")
        assert second.wait(300) == 2
        assert f"is in use: a driver on {os.uname().nodename} (process {first.pid}" in (tmp_path / "second").read_text()
        command = [sys.executable, "-m", "jobs.cli", "status", run]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
        assert f"process {first.pid}" in told
        assert "at work" in told
        assert first.wait(600) == 0, log.read_text()
    finally:
        end(first)
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert "no driver works on it" in told
    lines = [line.split("│")[1:4] for line in told.splitlines() if "│" in line]
    states = {stage.strip(): (state.strip(), done.strip()) for stage, state, done in lines}
    assert states["images"] == ("complete", "10")
    assert states["superpixels"] == ("complete", "10")
    assert states["seeds/fine"] == ("waiting", "")
