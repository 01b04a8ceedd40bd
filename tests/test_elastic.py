"""A stage follows its machines: one that joins in its middle takes work, one that goes takes nothing along."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.scaling import IdleSam, fill_images, photograph, propose_chain
from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.shard_pipeline import map_shards
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from tests.support.ray_heads import ROOT

NUM_IMAGES, SIZE = 960, (60, 80)
SECONDS_PER_IMAGE = 0.1
pytestmark = pytest.mark.long


class ScaledSam(IdleSam):
    """As replicas of `ReplicaPlan` are made."""

    def __init__(self, seconds_per_image: float, height_px: int, width_px: int, num_threads: int) -> None:
        super().__init__(seconds_per_image, height_px, width_px)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without a GPU; nodes are to import the tests' classes."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    own = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield own
    ray.shutdown()
    own.shutdown()


@pytest.mark.timeout(600)
def test_a_machine_that_joins_takes_work_and_one_that_goes_loses_nothing(
    cluster: Cluster, tmp_path: Path, record_property: Any
) -> None:
    first = cluster.add_node(num_cpus=2, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    run = Run(Folder(str(tmp_path / "run")))
    parts = fill_images(run, NUM_IMAGES, photograph(*SIZE), SIZE)
    plan = plan_replicas(None, None, 1, max_gpus=3)
    assert plan.num_replicas == 3
    arguments = {"seconds_per_image": SECONDS_PER_IMAGE, "height_px": SIZE[0], "width_px": SIZE[1]}
    done: list[str] = []
    events: list[dict[str, Any]] = []
    joined_s, names = [0.0, 0.0], []

    def on_done(row: dict[str, Any]) -> None:
        done.append(row["part"])
        if len(done) == 3:
            joined_s[0] = time.time()
            names.append(cluster.add_node(num_cpus=2, num_gpus=1).node_id[:8])
        if len(done) == 20:
            cluster.remove_node(first, allow_graceful=False)
            joined_s[1] = time.time()
            names.append(cluster.add_node(num_cpus=2, num_gpus=1).node_id[:8])

    map_shards([{"part": part} for part in parts], propose_chain(run, plan.operator(ScaledSam, arguments), 0.5),
               on_done, on_timings=events.extend)  # fmt: skip
    assert sorted(done) == parts
    assert run.count_rows("superpixels", parts) == NUM_IMAGES
    own = [event for event in events if event["name"] == ScaledSam.__name__]
    by_node = {name: [event["ts"] / 1e6 for event in own if event["pid"] == name] for name in names}
    assert all(by_node.values()), "a machine that joined had nothing to do"
    waits_s = [round(min(by_node[name]) - at, 1) for name, at in zip(names, joined_s, strict=True)]
    record_property("seconds_until_work", waits_s)
    print(f"seconds from joining to the first shard: {waits_s}; CPUs of this machine: {os.cpu_count()}")
