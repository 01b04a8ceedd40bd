"""The stage's operators in a row, without Ray: superpixels that runs share are found, not made again."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.sam_masks import SamReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.schemas import IMAGES
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.toy.world import draw_scene
from fmwsss.jobs.superpixels.propose import STAGE, decode_unknown, write_shard
from fmwsss.jobs.superpixels.shared_cache import SharedSuperpixels, sam_sha256
from tests.support.image_files import png

PART = "part-00000.parquet"
TOY = ModelSpec(model="toy")
SETTINGS = ProposalSettings(
    points_per_side=4, predicted_iou_threshold=0.5, stability_threshold=0.5, min_region_area_px=10
)


@pytest.fixture(scope="module")
def replica() -> SamReplica:
    return SamReplica(TOY, SETTINGS, STAGE, num_threads=1)


def run_with(folder: Path, images: dict[str, bytes]) -> Run:
    run = Run(Folder(str(folder)))
    rows = [
        {"image_id": name, "image": data, "classes": [], "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in images.items()
    ]
    run.folder.child("images").write_table(PART, rows, IMAGES)
    return run


def propose(run: Run, replica: SamReplica, shared: SharedSuperpixels | None) -> int:
    """The stage on its one part; returns how many images SAM saw."""
    decoded = decode_unknown(pa.table({"part": [PART]}), run, shared)
    write_shard(replica(decoded), run, SETTINGS, shared)
    return sum(pixels is not None for pixels in decoded["pixels"].to_pylist())


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_second_run_with_the_same_sam_computes_nothing_again(
    request: pytest.FixtureRequest, tmp_path: Path, replica: SamReplica, place: str
):
    url = str(tmp_path) if place == "local" else f"{request.getfixturevalue('s3_url')}/proposals"
    scenes = {f"scene-{number}": png(draw_scene(number).image) for number in range(4)}
    bad = {"bad": b"no image"}
    alone = run_with(tmp_path / "alone", scenes | bad)
    assert propose(alone, replica, None) == 4
    expected = alone.folder.child(STAGE).read(PART)

    shared = SharedSuperpixels.of(f"{url}/shared", sam_sha256(TOY), SETTINGS)
    first = run_with(tmp_path / "first", dict(list(scenes.items())[:3]))
    assert propose(first, replica, shared) == 3
    # The second has one image more and one that fails; the third has them all under other names.
    second = run_with(tmp_path / "second", scenes | bad)
    assert propose(second, replica, shared) == 1
    assert second.folder.child(STAGE).read(PART) == expected
    assert [row["image_id"] for row in second.failures(STAGE).to_pylist()] == ["bad"]
    renamed = run_with(tmp_path / "renamed", {f"new-{name}": data for name, data in scenes.items()})
    assert propose(renamed, replica, shared) == 0
    table = renamed.read_part(STAGE, PART)
    assert table["image_id"].to_pylist() == [f"new-{name}" for name in scenes]
    assert table["rle"] == alone.read_part(STAGE, PART)["rle"]


def test_other_settings_or_weights_share_nothing(tmp_path: Path):
    url = str(tmp_path)
    here = SharedSuperpixels.of(url, "a", SETTINGS)
    assert SharedSuperpixels.of(url, "b", SETTINGS) != here
    assert SharedSuperpixels.of(url, "a", dataclasses.replace(SETTINGS, stability_threshold=0.6)) != here
    assert SharedSuperpixels.of(url, "a", dataclasses.replace(SETTINGS, precision="bfloat16")) != here
    # How many points are decoded at once changes nothing that is stored.
    assert SharedSuperpixels.of(url, "a", dataclasses.replace(SETTINGS, points_per_batch=7)) == here
