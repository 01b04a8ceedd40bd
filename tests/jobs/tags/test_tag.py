"""A run whose labels come from CLIP, against the same image by image in one process; and corrections."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.errors import InputError
from fmwsss.core.images import UNLIMITED, decode_rgb
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.tags.tagclip import tag_scores
from fmwsss.core.tags.threshold import dataset_threshold, quality, tagged
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY
from fmwsss.jobs.config.labels import LabelsSection
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.yaml_text import ConfigError
from fmwsss.jobs.images.labelled import read_labelled
from fmwsss.jobs.steps import stages_of
from fmwsss.jobs.tags.corrections import read_corrections
from fmwsss.jobs.tags.tag import labels_of
from tests.support.fault_injection import DEMO, ROOT

SETTINGS = [
    "dataset.num_images=10", "shard_rows=4", "propose.points_per_side=6", "preview.num_images=2", "learn=none",
    "seeds.coarse.source=patch", "seeds.fine.source=patch", "seeds.coarse.scales=[1.0]", "seeds.fine.scales=[1.0]",
    "labels.from=clip", "labels.known=ignore",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tags") / "run"
    table = folder.parent / "corrections.csv"
    table.write_text("image_id,class,present\ntoy-000003,boat,1\ntoy-000004,Bird,0\n")
    command = [sys.executable, "-m", "fmwsss.jobs", "run", DEMO, f"run={folder}", *SETTINGS]
    result = subprocess.run(
        [*command, f"labels.corrections={table}"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    assert "tags/threshold: 0." in result.stdout
    assert "beside the labels of 10 images: precision" in result.stdout
    return Run(Folder(str(folder)))


def rows(run: Run, stage: str) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for part in run.parts(stage) for row in run.read_part(stage, part).to_pylist()}


def test_labels_are_those_of_the_method_done_in_one_process(run: Run) -> None:
    clip = FrozenClip(toy_clip(), "toy")
    texts = handmade_embeddings(clip, TOY)
    images, labels = rows(run, "images"), rows(run, "tags/labels")
    names = sorted(images)
    expected = np.stack([tag_scores(clip, decode_rgb(images[name]["image"], UNLIMITED), *texts) for name in names])
    scores = rows(run, "tags/scores")
    found = np.asarray([scores[name]["scores"] for name in names])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    threshold = dataset_threshold(found.astype(np.float32))
    told = json.loads(run.folder.child("tags/threshold").read("threshold.json"))["threshold"]
    assert told == pytest.approx(threshold)
    tags = {}
    for name, own in zip(names, found, strict=True):
        tags[name] = {TOY.classes[number] for number in np.flatnonzero(tagged(own, threshold))}
    tags["toy-000003"].add("boat")
    tags["toy-000004"].discard("bird")
    assert {name: set(labels[name]["classes"]) for name in names} == tags
    assert (
        dict(zip(labels["toy-000003"]["classes"], labels["toy-000003"]["origin"], strict=True))["boat"] == "correction"
    )
    # Seeds are made of them, and figures compare them with the labels that were not read.
    assert {name: set(row["classes"]) for name, row in rows(run, "seeds/fine").items()} == tags
    shown = np.array([[name in images[own]["classes"] for name in TOY.classes] for own in names])
    numbers = [[TOY.classes.index(name) for name in labels[own]["classes"]] for own in names]
    metrics = json.loads(run.folder.child("reports").read("metrics.json"))
    assert metrics["tags"]["images_judged"] == 10
    for key, value in quality(found, numbers, shown).items():
        assert metrics["tags"][key] == pytest.approx(value)
    assert metrics["labels"].keys() == {name for own in tags.values() for name in own}


def test_a_stage_reads_labels_from_where_they_are(run: Run) -> None:
    config = load_config(DEMO, SETTINGS)
    reads = {stage.name: stage.reads for stage in stages_of(config)}
    assert reads["superpixels"] == ("images",)
    assert "tags/labels" in reads["seeds/fine"]
    assert list(reads).index("tags/labels") < list(reads).index("seeds/coarse")
    part = run.parts("images")[0]
    own = {row["image_id"]: row["classes"] for row in read_labelled(run, part, ["image_id", "classes"], "tags/labels")}
    assert own == {name: row["classes"] for name, row in rows(run, "tags/labels").items() if name in own}
    plain = stages_of(load_config(DEMO))
    assert not [stage.name for stage in plain if stage.name.startswith("tags")]
    assert "tags/threshold" not in [
        stage.name for stage in stages_of(load_config(DEMO, [*SETTINGS, "labels.threshold=.5"]))
    ]


SCORES = [0.9, 0.6, 0.1, 0.0]
CLASSES = ("car", "cow", "bus", "fish")


@pytest.mark.parametrize(
    ("known", "given", "corrections", "expected"),
    [
        ("keep", ["bus"], {}, {"bus": "dataset"}),
        ("keep", [], {}, {"car": "clip", "cow": "clip"}),
        ("extend", ["bus"], {}, {"car": "clip", "cow": "clip", "bus": "dataset"}),
        ("ignore", ["bus"], {}, {"car": "clip", "cow": "clip"}),
        ("extend", ["bus"], {"bus": False, "fish": True}, {"car": "clip", "cow": "clip", "fish": "correction"}),
        ("keep", [], {"car": False, "cow": False}, {}),
    ],
)
def test_known_labels_tags_and_corrections(
    known: Any, given: list[str], corrections: dict[str, bool], expected: dict[str, str]
) -> None:
    labels = LabelsSection(source="clip", known=known)
    told = labels_of({"classes": given, "scores": SCORES}, 0.5, CLASSES, labels, corrections)
    assert dict(zip(told["classes"], told["origin"], strict=True)) == expected
    assert told["classes"] == [name for name in CLASSES if name in expected]


def test_an_image_whose_labels_are_known_needs_no_best_class() -> None:
    row = {"classes": ["bus"], "scores": [0.3, 0.1, 0.0, 0.0]}
    assert labels_of(row, 0.5, CLASSES, LabelsSection(source="clip", known="extend"), {})["classes"] == ["bus"]
    assert labels_of({**row, "classes": []}, 0.5, CLASSES, LabelsSection(source="clip"), {})["classes"] == ["car"]
    without = LabelsSection(source="clip", at_least_one=False)
    assert labels_of({**row, "classes": []}, 0.5, CLASSES, without, {})["classes"] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image_id,class\na,car\n", "has no column present"),
        ("image_id,class,present\na,car,1\na,cat,1\n", "row 3: 'cat' is no class of the run"),
        ("image_id,class,present\na,car,maybe\n", "row 2: `present` is 1 or 0, not 'maybe'"),
        ("image_id,class,present\na,car,\n", "row 2: `present` is 1 or 0, not ''"),
    ],
)
def test_a_wrong_correction_is_told_by_its_row(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match=told):
        read_corrections(str(tmp_path / "table.csv"), CLASSES)


def test_corrections_hold_by_their_last_row(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("Image ID;class;present\na;Car;yes\na;cow;0\na;car;no\nb;bus;1\n")
    found = read_corrections(str(tmp_path / "table.csv"), CLASSES)
    assert found == {"a": {"car": False, "cow": False}, "b": {"bus": True}}


def test_images_without_labels_need_somebody_to_label_them(tmp_path: Path) -> None:
    dataset = f"dataset={{kind: unlabelled, images: {tmp_path}}}"
    with pytest.raises(ConfigError, match="`dataset` has no labels: write `labels:"):
        load_config(DEMO, [dataset])
    assert load_config(DEMO, [dataset, "labels={from: clip}"]).labels.is_tagged


def test_a_correction_of_an_image_that_is_not_there_ends_the_start(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image_id,class,present\nno-such,boat,1\n")
    command = [sys.executable, "-m", "fmwsss.jobs", "run", DEMO, f"run={run.folder.url}", *SETTINGS]
    again = [*command, f"labels.corrections={table}", "--from", "tags/labels", "--only", "tags"]
    result = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("the run has no image 'no-such'")
