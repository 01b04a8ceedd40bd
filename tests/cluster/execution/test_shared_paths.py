"""What only this machine sees is told before work is sent to others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from fmwsss.cluster.execution.shared_paths import demand_shared
from fmwsss.core.errors import InputError
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.steps import local_paths


@pytest.fixture
def two_nodes() -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_a_path_that_another_machine_does_not_see_is_told(tmp_path: Path) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "here alone"
    shared.mkdir()
    alone.mkdir()
    # Both nodes are this machine; what is gone meanwhile stands for what the other one never had.
    demand_shared({"run": str(shared), "sam.weights": str(alone)})
    shutil.rmtree(alone)
    with pytest.raises(InputError, match=r"sam\.weights: .*here alone is a path of this machine, and .* does not see"):
        demand_shared({"run": str(shared), "sam.weights": str(alone)})
    demand_shared({})


def test_urls_and_names_of_weights_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    config = load_config("coco14", ["run=s3://bucket/runs/a", f"dataset.images={tmp_path}/images"])
    assert local_paths(config) == {"dataset.images": f"{tmp_path}/images"}
