"""`fmwsss init` looks at what is there; what it writes runs; and a mistake is told before Ray is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.cli import _config_of
from fmwsss.jobs.commands import init, preflight
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.images.readers.base import DatasetError
from fmwsss.jobs.reports.table import print_table
from tests.jobs.images.readers.test_other_kinds import JPEG, coco_json

ROOT = Path(__file__).parents[3]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("IMG_0001.jpg", "IMG_0002.jpg", "sub/IMG 3.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(JPEG)
    return tmp_path


TABLE = "file,label\nIMG_0001,person;horse\nIMG_0002,car\nsub/IMG 3.jpg,car\n"


def test_images_without_labels_are_tagged_with_the_classes_that_are_named(photos: Path) -> None:
    lines = init.run("photos/", None, None, "person, horse,person")
    assert "3 images" in lines
    config = load_config("photos.yaml")
    assert config.dataset.model_dump(exclude_defaults=True) == {"kind": "unlabelled", "images": "photos/"}
    assert config.resolve_vocabulary().classes == ("person", "horse")
    assert config.labels.is_tagged
    for classes, labels, told in ((" ,", None, "names no class"), ("a", "labels.csv", "either a table of labels")):
        with pytest.raises(ValueError, match=told):
            init.run("photos/", labels, "other.yaml", classes)


@pytest.mark.parametrize("place", ["labels.csv", "photos/anything.csv"])
def test_a_table_beside_or_in_the_folder_is_found(photos: Path, place: str) -> None:
    (photos / place).write_text(TABLE)
    (photos / "other.csv").write_text("a,b\n1,2\n")
    lines = init.run("photos/", None, None)
    assert "images a class: car 2, horse 1, person 1" in lines
    text = (photos / "photos.yaml").read_text()
    assert "# " in text
    assert "#   3 images" in text
    config = load_config("photos.yaml")
    assert config.dataset.model_dump(exclude_defaults=True) == {"kind": "folder", "images": "photos/", "labels": place}
    assert config.resolve_vocabulary().classes == ("car", "horse", "person")
    with pytest.raises(ValueError, match=r"photos\.yaml is there already"):
        init.run("photos/", None, None)


def test_one_hot_coco_folders_and_yolo_are_known(photos: Path) -> None:
    (photos / "hot.csv").write_text("image,big dog,cat\nIMG_0001,1,0\nIMG_0002,0,1\n")
    data, classes = init.look_at("photos", "hot.csv")
    assert (data.kind, classes) == ("folder", ["big dog", "cat"])
    told = coco_json(images=[{"id": 9, "file_name": "IMG_0001.jpg"}])
    (photos / "c.json").write_text(json.dumps(told))
    assert init.look_at("photos", "c.json")[1] == ["person", "dog", "Toothbrush"]
    for name in ("sorted/cat/1.jpg", "sorted/big dog/1.jpg", "y/images/train/1.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(JPEG)
    assert init.look_at("sorted", None)[1] == ["big dog", "cat"]
    (photos / "y/data.yaml").write_text("path: .\ntrain: images/train\nnames: [cat]\n")
    assert init.look_at("y", None)[0].model_dump(exclude_defaults=True) == {"kind": "yolo", "data": "y/data.yaml"}


def test_a_folder_that_says_nothing_is_told_what_to_do(photos: Path) -> None:
    with pytest.raises(DatasetError, match="write a table with the columns image_id and classes"):
        init.run("photos", None, None)
    assert not (photos / "photos.yaml").exists()
    with pytest.raises(DatasetError, match="there is nothing in"):
        init.run("nowhere", None, None)


def test_the_block_of_the_readme_runs_as_it_is_pasted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)
    table = re.search(r"\n((?:    .*\n)*    image_id,classes\n(?:    .*\n)*)", readme)
    assert block
    assert table
    (photos / "labels.csv").write_text("\n".join(line.strip() for line in table[1].splitlines()) + "\n")
    (photos / "mine.yaml").write_text(block[1])
    config = load_config("mine.yaml")
    own = yaml.safe_load((ROOT / "configs/own.yaml").read_text())
    assert own["dataset"] == yaml.safe_load(block[1])["dataset"]
    preflight.look(config)
    assert "images: 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dataset.images=nowhere", "is not there; check the path"),
        ("dataset.labels=nothing.csv", "can't read .*nothing.csv: it does not exist"),
        ("vocabulary.classes=[zebra]", "none of the 3 images can be used; IMG_0001: the label 'car'"),
        ("sam.weights=missing/sam.pth", "sam: no weights at missing/sam.pth"),
        ("run=labels.csv/run", "nothing can be written to .*labels.csv: not a directory"),
        ("run=/proc/fmwsss/x", "nothing can be written to"),
    ],
)
def test_mistakes_are_told_before_ray_and_torch_are_imported(photos: Path, change: str, message: str) -> None:
    (photos / "labels.csv").write_text(TABLE)
    init.run("photos", None, "mine.yaml")
    command = [sys.executable, "-X", "importtime", "-m", "fmwsss.jobs", "run", "mine.yaml", change]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 2
    told = [line for line in result.stderr.splitlines() if line.startswith("fmwsss: ")]
    assert len(told) == 1
    assert re.search(message, told[0])
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time")
    }
    assert not imported & {"torch", "ray"}


def test_a_run_folder_stands_for_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("demo", [f"run={tmp_path}/run", "shard_rows=3"])
    told = config.model_dump(mode="json", exclude={"cluster"})
    Folder(config.run).write("manifest.json", json.dumps({"config": told, "stages": []}).encode())
    assert _config_of(config.run, ["max_failures=0.5"]).shard_rows == 3
    assert _config_of("run", None).run == config.run
    (tmp_path / "demo").mkdir()
    assert _config_of("demo", None).shard_rows != 3  # the preset; the folder is ./demo
    with pytest.raises(ValueError, match=r"there is no run at .*demo: it has no manifest"):
        _config_of("./demo", None)
    with pytest.raises(ValueError, match=r"is neither a run file, whose name ends in \.yaml, nor a preset"):
        _config_of("nothing", None)


def test_without_ground_truth_the_table_tells_confidence_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "fine", "split": "all", "miou": None, "pixel_accuracy": None, "boundary_iou": None, "per_class": {},
           "mean_confidence": 0.71, "coverage": 0.9, "share_with_missing_class": 0.25, "images": 8, "failures": 1,
           "seconds_per_image": 2.0}  # fmt: skip
    maps = {key: value for key, value in row.items() if key not in ("mean_confidence", "coverage")} | {"name": "cam"}
    labels = {"cat": {"images": 5, "seeded": 4}, "dog": {"images": 3, "seeded": 3}}
    print_table({"split": "all", "truth": False, "rows": [maps, row], "labels": labels})
    out = capsys.readouterr().out
    for text in ("no ground truth", "0.71", "90 %", "25 %", "cat", "in the seed"):
        assert text in out
    assert "mIoU" not in out.replace("so no mIoU", "")
