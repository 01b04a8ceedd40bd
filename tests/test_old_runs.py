"""A run made by the release before (three scenes, killed in the middle of its coarse seeds) is gone on with.

tests/data/old_run was made at commit 031a163 with the demo's run file: 3 images, shards of one image, 4 points a side,
2 iterations. Its files have no hash in their names, and its receipts list none.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import ChangedInputs, Run, part_name
from fmwsss.jobs import steps
from fmwsss.jobs.commands.verify import find_damage
from fmwsss.jobs.config.load import config_of
from fmwsss.jobs.stages import make_stage

OLD = Path(__file__).parent / "data" / "old_run"
STAGES = ["images", "superpixels", "prompts/classification", "seeds/coarse"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_run_of_the_release_before_is_gone_on_with(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.name != "manifest.json"}
    run = Run(Folder(str(tmp_path / "run")))
    steps.run(config_of(run, ["cluster.num_cpus=2", "cluster.num_replicas=1"]), STAGES)
    assert {path: path.read_bytes() for path in before} == before
    receipt = Run(run.folder).receipt("seeds/coarse")
    assert receipt is not None
    assert [file.name for file in receipt.files] == receipt.parts == [part_name(index) for index in range(3)]
    assert (receipt.num_rows, receipt.num_failures) == (3, 0)
    rows = [row for part in receipt.parts for row in run.read_part("seeds/coarse", part).to_pylist()]
    assert [row["image_id"] for row in rows] == ["toy-000000", "toy-000001", "toy-000002"]
    assert find_damage(Run(run.folder)) == []


def test_a_run_of_another_method_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    run = Run(Folder(str(tmp_path / "run")))
    config = config_of(run, ["cluster.num_cpus=2", "cluster.num_replicas=1"])
    seeds = next(stage for stage in steps.stages_of(steps.pin_models(config)[0]) if stage.name == "seeds/coarse")
    with pytest.raises(ChangedInputs, match=r"method_version: 1 -> 2; .* --from seeds/coarse"):
        make_stage(dataclasses.replace(seeds, method_version=2), run, 0.0)
