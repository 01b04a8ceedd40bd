"""A cluster that begins as a head without a GPU: machines come when a stage wants them, and go back when it is done.

Ray's own provider of fake nodes takes the place of a cloud: its nodes are real raylets on this machine, asked for and
ended by Ray's real autoscaler.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from benchmarks.scaling import IdleSam, fill_images, photograph, propose_chain
from fmwsss.cluster.execution.resources import ResourceError, plan_replicas
from fmwsss.cluster.execution.session import session
from fmwsss.cluster.execution.shard_pipeline import map_shards
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from tests.support.ray_heads import ROOT, free_port, serve_head, token_environment

MAX_NODES = 2
IDLE_MINUTES = 0.1
NUM_IMAGES = 320
CLUSTER: dict[str, Any] = {
    "cluster_name": "fake",
    "max_workers": MAX_NODES,
    "idle_timeout_minutes": IDLE_MINUTES,
    "upscaling_speed": 1.0,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 10**9},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MAX_NODES,
        },
    },
    "auth": {"ssh_user": "ubuntu"},
    # What `ray up` would fill in.
    **{key: {} for key in ("file_mounts", "docker", "head_node", "worker_nodes")},
    **{key: [] for key in ("cluster_synced_files", "initialization_commands", "rsync_exclude", "rsync_filter")},
    **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
    **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    "file_mounts_sync_continuously": False,
}
pytestmark = pytest.mark.long


@pytest.fixture
def autoscaling(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head whose autoscaler may bring two nodes with a GPU each: its address, and the environment of a driver."""
    port = free_port()
    environment = {
        **token_environment(tmp_path),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    provider = {
        "type": "fake_multinode",
        "gcs_address": f"127.0.0.1:{port}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({**CLUSTER, "provider": provider}))
    options = [f"--port={port}", "--num-cpus=1", "--include-dashboard=false", f"--autoscaling-config={file}"]
    with serve_head(options, environment):
        yield f"127.0.0.1:{port}", environment


@pytest.mark.timeout(600)
def test_machines_come_for_the_replicas_and_go_back(autoscaling: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = autoscaling
    # A process of its own: Ray reads how to authenticate only once.
    program = f"from tests.test_autoscaling import drive; drive({str(tmp_path / 'run')!r}, {address!r})"
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "machines went back" in result.stdout


def drive(folder: str, address: str) -> None:
    """A driver: SAM's stage on a cluster that has no GPU when it begins."""
    run, size = Run(Folder(folder)), (60, 80)
    parts = fill_images(run, NUM_IMAGES, photograph(*size), size)
    done: list[str] = []
    events: list[dict[str, Any]] = []
    with session(address):
        assert ray.cluster_resources().get("GPU", 0) == 0
        with pytest.raises(ResourceError, match=r"cluster\.max_gpus"):
            plan_replicas(None, 1.0, 1)
        plan = plan_replicas(None, None, 1, max_gpus=MAX_NODES)
        assert plan.num_replicas == MAX_NODES
        arguments = {"seconds_per_image": 0.1, "height_px": size[0], "width_px": size[1]}
        chain = propose_chain(run, plan.operator(ScaledSam, arguments), plan.helper_cpus)
        map_shards(
            [{"part": part} for part in parts], chain, lambda row: done.append(row["part"]), on_timings=events.extend
        )
        assert sorted(done) == parts
        assert run.count_rows("superpixels", parts) == NUM_IMAGES
        # Both had work to do: the pool did not stay on the machine that came first. (A replica takes a machine's only
        # GPU; names of fake nodes are too much alike to be told apart in a timeline.)
        assert len({event["tid"] for event in events if event["name"] == ScaledSam.__name__}) == MAX_NODES
        deadline = time.monotonic() + 240
        while ray.cluster_resources().get("GPU", 0) > 0:
            assert time.monotonic() < deadline, "machines without work were kept"
            time.sleep(1)
    print("machines went back")


class ScaledSam(IdleSam):
    """As replicas of `ReplicaPlan` are made."""

    def __init__(self, seconds_per_image: float, height_px: int, width_px: int, num_threads: int) -> None:
        assert num_threads == 1
        super().__init__(seconds_per_image, height_px, width_px)
