"""`fmwsss plan`: what could not succeed is told before anything is spent; what is measured is scaled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.commands import plan
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from tests.support.image_files import png

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs" / "demo.yaml")


def folder_config(tmp_path: Path, labels: dict[str, str], *overrides: str, bad: int = 0) -> RunConfig:
    (tmp_path / "images").mkdir(exist_ok=True)
    for index, name in enumerate(labels):
        data = png(np.full((20, 30, 3), index, np.uint8))
        (tmp_path / "images" / f"{name}.png").write_bytes(data[:40] if index < bad else data)
    rows = "\n".join(f"{name},{classes}" for name, classes in labels.items())
    (tmp_path / "labels.csv").write_text(f"image_id,classes\n{rows}\n")
    dataset = f"dataset={{kind: folder, images: {tmp_path}/images, labels: {tmp_path}/labels.csv}}"
    return load_config(DEMO, [f"run={tmp_path}/run", dataset, "vocabulary={classes: [cat, dog]}", *overrides])


def test_labels_that_are_no_classes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {f"image{index}": "cat" if index < 8 else "spaceship" for index in range(10)}
    assert not plan.run(folder_config(tmp_path, labels, "max_failures=1 %"), 2)
    told = capsys.readouterr().out
    assert "NO   labels: 2 of 10 images have labels that the vocabulary has not: 'spaceship' (2)" in told
    assert "this run can't succeed: 2 of 10 images have labels" in told
    assert "hours" not in told
    assert not (tmp_path / "run").exists()


def test_images_that_cannot_be_decoded_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {f"image{index}": "cat" for index in range(4)}
    assert not plan.run(folder_config(tmp_path, labels, bad=4), 2)
    assert "NO   pixels: of 4 images that were read none can be used: " in capsys.readouterr().out


@pytest.mark.usefixtures("fresh_s3")
def test_every_problem_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["sam={model: vit_b, weights: nowhere.pth}", "run=s3://no-such-bucket/run"]
    config = folder_config(tmp_path, {"a": "cow"}, *overrides)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anything")
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        patch.setattr("fmwsss.cluster.storage.folder.FIRST_WAIT_S", 0.001)
        assert not plan.run(config, 2)
    told = capsys.readouterr().out
    assert "no answer at 127.0.0.1:1 after 4 tries" in told
    assert "no weights at nowhere.pth" in told
    assert "1 of 1 images have labels that the vocabulary has not: 'cow' (1)" in told


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    config = folder_config(tmp_path, {"a": "cat"}, f"run={tmp_path}/file/run")
    assert not plan.run(config, 2)
    assert "NO   run folder: " in capsys.readouterr().out


def test_a_schedule_that_is_all_warm_up_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not plan.run(folder_config(tmp_path, {"a": "cat"}, "learn.classification.warmup_iterations=500"), 2)
    told = capsys.readouterr().out
    assert "prompts/classification would take 8 iterations, and learn.classification.warmup_iterations is 500" in told


def test_validation_images_that_are_not_there_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmwsss.jobs.segmenter.train.importlib.util.find_spec", lambda name: None)
    validation = f"segmenter={{validation: {{kind: unlabelled, images: {tmp_path}/nowhere}}, engine: detectron2}}"
    config = folder_config(tmp_path, {"a": "cat"}, validation)
    assert not plan.run(config, 2)
    assert "NO   segmenter: segmenter.engine is detectron2, which is not installed here" in capsys.readouterr().out
    assert config.segmenter is not None
    section = config.segmenter.model_copy(update={"engine": "ray"})
    assert not plan.run(config.model_copy(update={"segmenter": section}), 2)
    assert f"NO   segmenter: {tmp_path}/nowhere is not there; check the path" in capsys.readouterr().out


def test_first_images_that_warm_up_a_process_do_not_count() -> None:
    def event(process: int, ts: int, dur: float) -> dict:
        return {"name": "SamReplica", "pid": "node", "tid": process, "ts": ts, "dur": dur * 1e6}

    events = [event(1, 5, 0.5), event(1, 1, 9.0), event(1, 7, 0.7), event(2, 3, 0.6)]
    assert plan._seconds_an_image(events) == {"SamReplica": 0.6}


def hours_of(told: str) -> float:
    """What `told_hours` said, as far as its digits go."""
    if told in ("none", "under a minute"):
        return 0.0 if told == "none" else 0.5 / 60
    value, unit = told.split()
    return float(value) * {"min": 1 / 60, "h": 1.0, "days": 24.0}[unit]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_run_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fmwsss.jobs", "plan", DEMO, f"run={tmp_path}/run",
               "dataset.num_images=9600", "shard_rows=8",
               "propose.points_per_side=2", "cluster.num_threads=1", "learn.classification.cache=input",
               "learn.joint_every=1600", "prices={currency: EUR, machine_hour: {cpu: 3}}", "--images", "2"]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380)
    assert result.returncode == 0, result.stdout + result.stderr
    told = result.stdout
    assert "ok   images: 9600," in told
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in told.splitlines() if line.startswith("│")]
    stages = {row[0]: row[1:] for row in rows}
    assert list(stages) == ["images", "superpixels", "features/classification", "prompts/classification",
                            "seeds/coarse", "seeds/joint", "prompts/segmentation", "seeds/fine", "all",
                            "1,000 images"]  # fmt: skip
    hours = {stage: hours_of(row[0]) for stage, row in stages.items()}
    each, total = hours.pop("1,000 images"), hours.pop("all")
    assert all(hours.values())
    assert total == pytest.approx(sum(hours.values()), rel=0.1)
    assert each == pytest.approx(total / 9.6, rel=0.1)
    # Learned for 8 epochs of 600 steps, each a good part of a second: no start of a process may be in it.
    assert 0.05 < hours["prompts/classification"] < 10
    # 144 tokens and [CLS] of 128 halves for each of four views.
    assert float(stages["features/classification"][3]) == pytest.approx(9_600 * 4 * 145 * 128 * 2 / 2**30, rel=0.1)
    # 20 epochs of 600 steps, new seeds every 1,600.
    assert hours["seeds/joint"] == pytest.approx(8 * hours["seeds/coarse"], rel=0.1)
    assert {row[1] for row in stages.values()} == {"0"}, "there is no GPU here"
    assert int(stages["seeds/fine"][4].replace(",", "")) == 9_600 + 1_200 * 8
    # This machine has a price: an hour of it is 3 of the money.
    assert float(stages["all"][2].replace(",", "")) == pytest.approx(3 * total, rel=0.1)
    assert "9600 images in 1200 shards of 8" in told
    assert "shard_rows" in told.splitlines()[-1]
    assert Folder(str(tmp_path)).list() == []


def test_parts_are_told_in_bytes_and_in_what_a_lost_machine_costs(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(DEMO, ["shard_rows=100"])
    stages = [
        plan.StagePlan("images", 1.0, 0.0, 1e9, 10, 8.0, 0.5),
        plan.StagePlan("superpixels", 9.0, 9.0, 1e9, 10, 1.0, 4.0),
    ]
    plan._show(config, [*stages, plan.StagePlan("prompts/classification", 1.0, 0.0, 0.0, 10, None, None)], 200_000, [])
    told = capsys.readouterr().out
    assert "200000 images in 2000 shards of 100" in told
    assert "shard_rows 800 would make the largest 64 MiB; a lost machine would then cost about 32 min a replica" in told
    (row,) = [line for line in told.splitlines() if "superpixels" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")][-2:] == ["1.00", "4 min"]
    plan._show(config, stages, 20_000, [])
    assert "small parts" not in capsys.readouterr().out
