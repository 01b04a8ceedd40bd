"""Programs that nobody runs for a while stop running: their cores, on inputs that take seconds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import methods, proposals, seeding, tables
from benchmarks.chaos.schedule import Schedule
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import propose
from fmwsss.core.toy.models import toy_sam
from fmwsss.core.toy.world import draw_scene

SETTINGS = ProposalSettings(
    points_per_side=6, predicted_iou_threshold=0.4, stability_threshold=0.5, min_region_area_px=10, crop_layers=1
)


def test_rows_without_a_change_are_what_propose_gives_without_it():
    image, sam = draw_scene(11).image, toy_sam()
    for name, found in methods.superpixels_of(sam, image, SETTINGS).items():
        expected = propose(sam, image, replace(SETTINGS, **methods.CHANGES[name]))
        assert found.rle == expected.rle, name
        np.testing.assert_array_equal(found.level, expected.level)


def test_the_generator_comparison_runs_and_finds_equal_masks():
    settings = replace(SETTINGS, **proposals.CHANGES_OFF)
    result = proposals.measure(toy_sam(), [draw_scene(12).image], settings, batch_effect=False)
    assert result["masks_equal"]
    assert result["masks"] > 0
    assert all(result["seconds"][side]["whole"] > 0 for side in ("ours", "original"))


def test_the_seeding_comparison_runs_and_finds_equal_seeds():
    row = seeding.measure(10, 2, 60, 80, repeats=1)
    assert row["equal"]
    assert row["vs_dense"] > 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_tables_are_made_and_gone_on_with(tmp_path: Path):
    """Two of the tables on a few scenes: rows share one pass of SAM, and a second call runs nothing."""
    short = ["dataset.num_images=6", "shard_rows=3", "propose.points_per_side=4", "cluster.num_threads=1"]
    lengths = [
        f"learn.{which}.{key}" for which in ("classification", "segmentation") for key in ("epochs=1", "batch_size=6")
    ]
    arguments = ("configs/demo.yaml", [f"run={tmp_path}", *short, *lengths], [1, 5], None)
    made = tables.make_tables(*arguments)
    assert [len(made[number]) for number in ("1", "5")] == [6, 4]
    assert all(0 < row["miou"] < 100 for rows in made.values() for row in rows)
    # The same seeds stand in both.
    assert made["1"][5]["miou"] == made["5"][3]["miou"]
    assert made["1"][3]["miou"] == made["5"][1]["miou"]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")}
    assert tables.make_tables(*arguments) == made
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")} == written


@pytest.mark.timeout(900)
def test_the_gpu_hour_runs_without_a_card(tmp_path: Path):
    """Every stage on the CPU, in sizes of seconds: a stage that has rotted fails here and not on a card."""
    command = [sys.executable, "-m", "benchmarks.gpu_hour", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    stages = ["env", "sam", "prompts", "maps", "segmenter", "replicas", "faults", "encoder"]
    command += ["--budget-s", "800", "--limit-factor", "5", "--only", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + (tmp_path / "log.txt").read_text()[-2000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [(stage["name"], stage["status"]) for stage in result["stages"]] == [(name, "ok") for name in stages]
    assert {row["what"] for stage in result["stages"] for row in stage["rows"]} >= {
        "encode ViT-H", "ours against SamAutomaticMaskGenerator", "prompt step", "class maps", "training step",
        "replicas on one card",
    }  # fmt: skip


def test_the_listing_of_datasets_is_measured():
    command = [sys.executable, "-m", "benchmarks.listing", "--images", "40", "--files", "60", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {kind: own["images"] for kind, own in told.items()} == {"coco": 40, "folder": 60}
    assert all(own["peak_gib"] > 0 for own in told.values())


def test_every_fault_of_chaos_comes_once_before_any_comes_again() -> None:
    schedule = Schedule(["a", "b", "c", "d"], random.Random(0))
    first = []
    while schedule.missing():
        name = schedule.draw(["a", "b", "c", "d"])
        assert name
        first.append(name)
        schedule.note(name, has_happened=len(first) > 1)  # the first one does not come to pass
    assert sorted(first[1:]) == ["a", "b", "c", "d"]
    assert first[0] == first[4]
    assert schedule.draw([]) is None
    # What is not possible waits for a run where it is.
    drawn = {name for _ in range(6) if (name := schedule.draw(["a", "b"])) and schedule.note(name, True) is None}
    assert drawn == {"a", "b"}
    assert schedule.draw(["c"]) == "c"
