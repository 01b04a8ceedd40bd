"""The command: train on seeds, predict images of one's own, refine and judge; one bad image is among them."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.images import decode_label_png, encode_label_png
from fmwsss.core.toy.world import draw_scene
from tests.support.image_files import png
from tests.support.segmenter_runs import CONFIG, ROOT, TINY, make_run

NUM_NEW = 5
pytestmark = pytest.mark.long


def fmwsss(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fmwsss.jobs", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "run"
    make_run(path)
    result = fmwsss("segmenter", CONFIG, f"run={path}", "segmenter.engine=ray", *TINY, "cluster.train_workers=2")
    assert result.returncode == 0, result.stderr
    assert "segmenter/round-1: 8 of 8 iterations" in result.stdout
    return path


def make_photos(folder: Path, truth: Path) -> None:
    folder.mkdir()
    truth.mkdir()
    for seed in range(100, 100 + NUM_NEW):
        scene = draw_scene(seed)
        (folder / f"new-{seed}.png").write_bytes(png(scene.image))
        (truth / f"new-{seed}.png").write_bytes(encode_label_png(scene.truth))
    (folder / "cut.png").write_bytes(png(draw_scene(9).image)[:900])


@pytest.mark.timeout(900)
def test_two_workers_train_what_one_does(trained: Path, tmp_path: Path):
    from fmwsss.cluster.execution.session import session
    from fmwsss.jobs.segmenter.train_loop import train_segmenter
    from tests.jobs.segmenter.test_train import make_board, make_job
    from tests.support.segmenter_runs import tiny_config

    job = make_job(tiny_config(tmp_path), make_run(tmp_path))
    with session(num_cpus=2):
        train_segmenter(job, make_board(), rank=0, num_workers=1)
    one = json.loads(job.run.folder.child(job.stage).read("history.json"))
    two = json.loads((trained / "segmenter" / "round-1" / "history.json").read_text())
    # Batch norms see half a batch each, so only the first loss can be the same up to their statistics.
    assert len(one) == len(two) == 8
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=0.05)
    names = Folder(str(trained)).list("segmenter")
    assert not [name for name in names if "_ray_train" in name or "_checkpoint" in name]


@pytest.mark.timeout(900)
def test_images_of_ones_own_are_predicted_refined_and_judged(trained: Path, tmp_path: Path):
    photos, truth = tmp_path / "photos", tmp_path / "truth"
    make_photos(photos, truth)
    arguments = ["predict", str(trained), "--images", str(photos), "--truth", str(truth), "--name", "mine"]
    result = fmwsss(*arguments, "predict.flip=true", "predict.scales=[1.0, 1.25]", "cluster.num_replicas=2", "--voc")
    assert result.returncode == 0, result.stderr
    assert "predictions/mine/predicted: 5 of 5 images" in result.stdout
    assert "boundary" in result.stdout
    own = trained / "predictions" / "mine"
    assert str(own / "voc_results.tar.gz") in result.stdout
    with tarfile.open(own / "voc_results.tar.gz") as archive:
        names = sorted(archive.getnames())
        assert names[0] == "results/VOC2012/Segmentation/comp6_test_cls/new-100.png"
        assert len(names) == NUM_NEW
        packed = archive.extractfile(names[0])
        assert packed is not None
        assert packed.read() == (own / "refined" / "png" / "new-100.png").read_bytes()
    metrics = json.loads((own / "reports" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == ["predicted", "refined"]
    for row in metrics["rows"]:
        assert (row["images"], row["images_judged"], row["failures"], row["split"]) == (5, 5, 1, "mine")
        assert 0 < row["pixel_accuracy"] <= 1
    assert [row["image_id"] for row in Run(Folder(str(own))).failures().to_pylist()] == ["cut"]
    for stage in ("predicted", "refined"):
        names = sorted(path.stem for path in (own / stage / "png").iterdir())
        assert names == [f"new-{seed}" for seed in range(100, 100 + NUM_NEW)]
        for seed in (100, 104):
            labels = decode_label_png((own / stage / "png" / f"new-{seed}.png").read_bytes())
            assert labels.shape == draw_scene(seed).truth.shape
            assert Image.open(own / stage / "png" / f"new-{seed}.png").mode == "P"
    row = Run(Folder(str(own))).read_part("predicted", "part-00000.parquet").to_pylist()[0]
    labels = decode_label_png(row["labels"])
    assert len(row["classes"]) == len(set(np.unique(labels)) - {0})
    assert len(row["probabilities"]) == 2 * (1 + len(row["classes"])) * row["grid_height"] * row["grid_width"]

    before = {path: path.stat().st_mtime_ns for path in own.rglob("part-*")}
    again = fmwsss(*arguments, "predict.flip=true", "predict.scales=[1.0, 1.25]")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in own.rglob("part-*")} == before

    (photos / "one-more.png").write_bytes((photos / "new-100.png").read_bytes())
    more = fmwsss(*arguments, "predict.flip=true", "predict.scales=[1.0, 1.25]")
    assert more.returncode == 0, more.stderr
    assert "the dataset has changed: 1 new" in more.stdout
    assert (own / "predicted" / "png" / "one-more.png").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there is not made again"
    (photos / "one-more.png").unlink()
    for change in ("predict.scales=[1.0]", "predict.merge_queries=max"):
        other = fmwsss(*arguments, "predict.flip=true", "predict.scales=[1.0, 1.25]", change)
        assert other.returncode != 0
        assert other.stderr.splitlines()[-1].endswith("give these predictions another --name")


@pytest.mark.timeout(900)
def test_a_second_round_is_trained_on_refined_labels_of_the_images_own_classes(trained: Path):
    arguments = [CONFIG, f"run={trained}", "segmenter.engine=ray", *TINY, "segmenter.rounds=2"]
    for step in ("superpixels", "segmenter"):
        result = fmwsss(step, *arguments)
        assert result.returncode == 0, result.stderr
    assert "segmenter/round-1: 8 of 8" not in result.stdout, "the first round is there already"
    assert "segmenter/round-2: 8 of 8 iterations" in result.stdout
    run = Run(Folder(str(trained)))
    for stage in ("round-1/predicted", "round-1/refined"):
        rows = [row for part in range(3) for row in run.read_part(f"segmenter/{stage}", part_name(part)).to_pylist()]
        assert len(rows) == 10
        for row in rows:
            own = set(draw_scene(int(row["image_id"].removeprefix("toy-"))).classes)
            assert set(row["classes"]) <= own
    assert run.folder.exists("segmenter/round-2/last/model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--images", "x"], "nowhere: it has no manifest.json"),
        (["{run}", "--images", "absent-folder"], "is not there; check the path"),
        (["{run}", "--images", "x", "--name", "../out"], "'../out' is no name for a folder of predictions"),
    ],
)
def test_mistakes_are_one_line(trained: Path, arguments: list[str], message: str):
    result = fmwsss("predict", *(argument.replace("{run}", str(trained)) for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
