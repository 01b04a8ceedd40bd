"""Two engines, one training: twenty steps of each have the same losses. Skipped where detectron2 is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.segmenter.inference import probabilities
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.segmenter.train_loop import train_segmenter
from tests.jobs.segmenter.test_train import PowerCutError, make_board, make_job, weights_of
from tests.jobs.segmenter.test_train import cluster as cluster
from tests.support.segmenter_runs import CONFIG, ROOT, TINY, make_run, tiny_config

pytest.importorskip("detectron2")

STEPS = "segmenter.iterations=20"


def job_at(path: Path, *more: str, **changes: object) -> TrainJob:
    return make_job(tiny_config(path, STEPS, *more), make_run(path), **changes)


def history_of(job: TrainJob) -> list[dict[str, float]]:
    return json.loads(job.run.folder.child(job.stage).read("history.json"))


@pytest.fixture(scope="module")
def by_detectron2(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    from fmwsss.jobs.segmenter import detectron2_engine

    path = tmp_path_factory.mktemp("detectron2")
    validation = make_run(path / "validation", first_seed=50, num_images=4)
    job = job_at(path, "segmenter.validate_every=10", validation=validation)
    detectron2_engine.train_segmenter(job, make_board())
    return job


def test_twenty_steps_of_each_engine_have_the_same_losses(by_detectron2: TrainJob, tmp_path: Path):
    by_ray = job_at(tmp_path)
    train_segmenter(by_ray, make_board(), rank=0, num_workers=1)
    ours, theirs = history_of(by_ray), history_of(by_detectron2)
    assert len(ours) == len(theirs) == 20
    for one, other in zip(ours, theirs, strict=True):
        for name in ("iteration", "learning_rate", "loss", "class", "mask", "dice"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), (one["iteration"], name)
    expected = weights_of(by_ray.run.folder.child(by_ray.stage))
    for name, value in weights_of(by_detectron2.run.folder.child(by_detectron2.stage)).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_what_is_trained_on_is_in_its_catalog(by_detectron2: TrainJob):
    from fmwsss.jobs.segmenter import detectron2_data as data

    name = f"fmwsss:{by_detectron2.run.folder.url}:seeds/fine.seed"
    entries = data.DatasetCatalog.get(name)
    assert [entry["image_id"] for entry in entries] == [f"toy-{seed:06d}" for seed in range(10)]
    assert entries[-1]["sem_seg_file_name"] == "seeds/fine/part-00002.parquet#toy-000009"
    assert data.MetadataCatalog.get(name).stuff_classes == [*by_detectron2.spec.class_names]


@pytest.mark.timeout(900)
def test_two_workers_of_each_engine_have_the_same_losses(tmp_path: Path):
    """Also with a Swin, some of whose parameters no step reaches, and with shares of a batch without any label."""
    swin = "segmenter.backbone={model_type: swin, embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]}"
    histories = {}
    for engine in ("ray", "detectron2"):
        path = tmp_path / engine
        make_run(path, blank_seeds=range(5))
        command = [sys.executable, "-m", "fmwsss.jobs", "segmenter", CONFIG, f"run={path}", *TINY, STEPS, swin,
                   "segmenter.validate_every=10", f"segmenter.engine={engine}", "cluster.train_workers=2"]  # fmt: skip
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr
        histories[engine] = json.loads((path / "segmenter" / "round-1" / "history.json").read_text())
    assert len(histories["ray"]) == len(histories["detectron2"]) == 20
    for one, other in zip(histories["ray"], histories["detectron2"], strict=True):
        for name in ("loss", "class", "mask", "dice"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), (one["iteration"], name)
        # Judged by both of them together, each half of the images.
        assert one.get("validation_miou") == pytest.approx(other.get("validation_miou"), abs=1e-3)
    assert "validation_miou" in histories["ray"][-1]


def test_its_checkpoint_goes_on_to_the_same_weights(by_detectron2: TrainJob, tmp_path: Path):
    from fmwsss.jobs.segmenter import detectron2_engine

    job = job_at(tmp_path, checkpoint_every_s=0.0)
    with pytest.raises(PowerCutError):
        detectron2_engine.train_segmenter(job, make_board(stop_at=12))
    assert job.run.folder.child(job.stage).exists(detectron2_engine.CHECKPOINT_FILE)
    detectron2_engine.train_segmenter(job, make_board())
    expected = weights_of(by_detectron2.run.folder.child(by_detectron2.stage))
    assert all(
        torch.equal(value, expected[name]) for name, value in weights_of(job.run.folder.child(job.stage)).items()
    )


def test_its_evaluator_gives_our_miou(by_detectron2: TrainJob):
    from fmwsss.cluster.models.segmenters import load_segmenter
    from fmwsss.jobs.segmenter import detectron2_data as data

    run = by_detectron2.validation
    assert run is not None
    spec = by_detectron2.spec
    segmenter = load_segmenter(by_detectron2.run.folder.child(by_detectron2.stage).child("last"), spec)
    name = data.register_dataset(run, "images", "truth", spec.class_names)
    evaluator = data.evaluator(run, name)
    evaluator.reset()
    counts = np.zeros((13, 14), np.int64)
    rows = run.read_part("images", "part-00000.parquet").to_pylist()
    for inputs, row in zip(data.test_loader(run, name), rows, strict=True):
        assert inputs[0]["image_id"] == row["image_id"]
        values = probabilities(segmenter, decode_rgb(row["image"], max_pixels=UNLIMITED), spec.short_side_px)
        labels = values.argmax(0).to(torch.uint8).numpy()
        counts += confusion_matrix(labels, decode_label_png(row["truth"]), 13)
        evaluator.process(inputs, [data.as_result(labels, 13)])
    theirs = evaluator.evaluate()["sem_seg"]["mIoU"]
    assert theirs == pytest.approx(100 * mean_iou(counts), rel=1e-9)
    # The same figure came out of detectron2's own evaluation at the end of the training.
    assert history_of(by_detectron2)[-1]["validation_miou"] == pytest.approx(theirs / 100, rel=1e-6)


def test_gradient_accumulation_is_refused(tmp_path: Path):
    from fmwsss.jobs.segmenter import detectron2_engine

    job = job_at(tmp_path, "segmenter.micro_batches=2")
    with pytest.raises(ValueError, match="use `engine: ray`"):
        detectron2_engine.train_segmenter(job, make_board())
