"""Training as one worker's loop: history, resume to the same bytes, pictures, weights, several workers' shares."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from fmwsss.cluster.execution.session import session
from fmwsss.cluster.models.segmenters import load_segmenter, new_segmenter, segmenter_files, spec_from_json
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.segmenter.crop_settings import CropSettings
from fmwsss.core.segmenter.crops import draw_crop
from fmwsss.core.toy.world import draw_scene
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.run_layout import kept_folder
from fmwsss.jobs.segmenter.crops import CropSource
from fmwsss.jobs.segmenter.train import training_inputs
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.segmenter.train_loop import train_segmenter
from fmwsss.jobs.segmenter.trained import segmenter_spec
from fmwsss.jobs.training.checkpoint import CHECKPOINT_FILE
from fmwsss.jobs.training.sampling import count_rows
from tests.support.segmenter_runs import NUM_IMAGES, make_run, tiny_config


class PowerCutError(Exception):
    """What ends a training in the middle."""


def make_board(stop_at: int | None = None) -> Any:
    """Takes progress as the actor would; may end the training at some iteration."""

    def tell(done: int, note: str) -> None:
        if done == stop_at:
            raise PowerCutError

    return SimpleNamespace(set=SimpleNamespace(remote=tell), tell=SimpleNamespace(remote=lambda step, values: None))


def make_job(config: RunConfig, run: Run, **changes: Any) -> TrainJob:
    section = config.segmenter
    assert section is not None
    images = run.receipt("images")
    assert images is not None
    settings = CropSettings(section.crop_px, section.short_side_px, section.scale_range)
    labels, weighted = ("seeds/fine", "seed"), section.confidence_weights
    parts = tuple(images.parts)
    rows = count_rows(run, parts, ["images", labels[0]])
    source = CropSource(run, parts, rows, labels, weighted, section.batch_size, settings, config.random_seed)
    job = TrainJob(
        run=run, stage="segmenter/round-1", spec=segmenter_spec(config), source=source, section=section,
        num_iterations=section.iterations, num_feeders=1, random_seed=0,
        num_threads=1, checkpoint_every_s=1e9, validation=None, precision="float32",
    )  # fmt: skip
    return replace(job, **changes)


def weights_of(folder: Folder) -> dict[str, torch.Tensor]:
    return load(folder.read("last/model.safetensors"))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    path = tmp_path_factory.mktemp("run")
    job = make_job(tiny_config(path), make_run(path))
    train_segmenter(job, make_board(), rank=0, num_workers=1)
    return job


def test_what_a_training_leaves_behind(undisturbed: TrainJob):
    folder = undisturbed.run.folder.child(undisturbed.stage)
    history = json.loads(folder.read("history.json"))
    assert [entry["iteration"] for entry in history] == list(range(8))
    assert all(set(entry) == {"iteration", "learning_rate", "loss", "class", "mask", "dice"} for entry in history)
    assert history[0]["learning_rate"] == 1e-3
    assert history[-1]["loss"] < history[0]["loss"]
    names = folder.list()
    assert "logs/events.out.tfevents.00000000" in names
    assert b"crop-label-prediction" in folder.read("logs/events.out.tfevents.00000000")
    assert spec_from_json(folder.read("last/segmenter.json").decode()) == undisturbed.spec
    segmenter = load_segmenter(folder.child("last"), undisturbed.spec)
    assert not segmenter.training
    assert segmenter.num_classes == 13


def test_a_training_that_was_stopped_ends_with_the_same_weights(undisturbed: TrainJob, tmp_path: Path):
    job = make_job(tiny_config(tmp_path), make_run(tmp_path), checkpoint_every_s=0.0)
    with pytest.raises(PowerCutError):
        train_segmenter(job, make_board(stop_at=6), rank=0, num_workers=1)
    folder = job.run.folder.child(job.stage)
    assert folder.exists(CHECKPOINT_FILE)
    assert not folder.exists("last/model.safetensors")
    train_segmenter(job, make_board(), rank=0, num_workers=1)
    expected = weights_of(undisturbed.run.folder.child(undisturbed.stage))
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(folder).items())
    assert folder.read("history.json") == undisturbed.run.folder.child(undisturbed.stage).read("history.json")


def test_confidences_weigh_the_loss(undisturbed: TrainJob, tmp_path: Path):
    config = tiny_config(tmp_path, "segmenter.confidence_weights=true", "segmenter.iterations=2")
    job = make_job(config, make_run(tmp_path))
    train_segmenter(job, make_board(), rank=0, num_workers=1)
    folder = job.run.folder.child(job.stage)
    plain = json.loads(undisturbed.run.folder.child(undisturbed.stage).read("history.json"))
    weighted = json.loads(folder.read("history.json"))
    assert weighted[0]["mask"] != plain[0]["mask"]


def test_the_best_is_kept_beside_the_last_only_when_asked(undisturbed: TrainJob, tmp_path: Path):
    assert not any(name.startswith("best") for name in undisturbed.run.folder.child(undisturbed.stage).list())
    config = tiny_config(tmp_path, "segmenter.validate_every=2", "segmenter.iterations=4")
    run = make_run(tmp_path)
    job = make_job(config, run, validation=make_run(tmp_path / "validation", first_seed=50, num_images=4))
    train_segmenter(job, make_board(), rank=0, num_workers=1)
    folder = run.folder.child(job.stage)
    history = json.loads(folder.read("history.json"))
    judged = {entry["iteration"]: entry["validation_miou"] for entry in history if "validation_miou" in entry}
    assert set(judged) == {1, 3}
    assert {"best/model.safetensors", "last/model.safetensors"} <= set(folder.list())


@pytest.mark.parametrize("scores", [(0.3, 0.5, 0.4), (0.5, 0.3, 0.4), (0.3, 0.3, 0.5)])
def test_the_best_is_the_one_that_scored_best(
    scores: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[dict[str, torch.Tensor]] = []

    def judge(segmenter: Any, *_: Any) -> float:
        seen.append({name: value.clone() for name, value in segmenter.network.state_dict().items()})
        return scores[len(seen) - 1]

    monkeypatch.setattr("fmwsss.jobs.segmenter.train_loop.validation_miou", judge)
    config = tiny_config(tmp_path, "segmenter.validate_every=1", "segmenter.iterations=3", "segmenter.keep=best")
    run = make_run(tmp_path)
    job = make_job(config, run, validation=run)
    train_segmenter(job, make_board(), rank=0, num_workers=1)
    assert config.segmenter is not None
    kept = load(run.folder.child(job.stage).child(kept_folder(config.segmenter)).read("model.safetensors"))
    best = seen[scores.index(max(scores))]
    assert all(torch.equal(value, best[name]) for name, value in kept.items())
    assert any(not torch.equal(value, seen[1][name]) for name, value in seen[2].items())


@pytest.mark.parametrize("paste", [0.0, 0.7])
def test_workers_share_a_batch(undisturbed: TrainJob, paste: float):
    source, args = undisturbed.source, (2, 4)
    plain = list(source.batches(*args, 0, 1))
    source = replace(source, settings=replace(source.settings, paste=paste))
    whole = list(source.batches(*args, 0, 1))
    shares = [list(source.batches(*args, rank, 2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert part.image_ids == batch.image_ids[rank::2]
            assert torch.equal(part.images, batch.images[rank::2])
            assert part.random_seeds == batch.random_seeds[rank::2]
    changed = [
        not torch.equal(a, b)
        for one, two in zip(plain, whole, strict=True)
        for a, b in zip(one.labels, two.labels, strict=True)
    ]
    assert any(changed) == (paste > 0)
    assert not all(changed)


def test_crops_are_what_is_drawn_of_their_image_and_batch(undisturbed: TrainJob):
    source = replace(undisturbed.source, weighted=True)
    scenes = {f"toy-{seed:06d}": draw_scene(seed) for seed in range(NUM_IMAGES)}
    seen = []
    for number, batch in enumerate(source.batches(0, 5, 0, 1)):
        assert batch.weights is not None
        assert len(batch.image_ids) == source.batch_size
        seen += batch.image_ids
        for image_id, image, labels, weights in zip(
            batch.image_ids, batch.images, batch.labels, batch.weights, strict=True
        ):
            scene = scenes[image_id]
            key = (source.random_seed, number, int.from_bytes(image_id.encode(), "little"))
            confidence = (scene.truth > 0).astype("uint8") * 155 + 100
            crop = draw_crop(scene.image, scene.truth, confidence, np.random.default_rng(key), source.settings)
            for ours, theirs in zip((image, labels, weights), crop, strict=True):
                assert theirs is not None
                assert torch.equal(ours, theirs)
    # Two batches of four of ten images in each epoch, every image at most once.
    assert [len(set(seen[begin : begin + 8])) for begin in (0, 8)] == [8, 8]


def test_how_queries_are_merged_can_be_chosen_after_the_training(tmp_path: Path):
    """Of its settings it is none, unless it had a say in which weights are the best."""
    plain, other = (tiny_config(tmp_path, f"predict.merge_queries={merge}") for merge in ("sum", "max"))
    assert [segmenter_spec(config).merge_queries for config in (plain, other)] == ["sum", "max"]
    best = tiny_config(tmp_path, "predict.merge_queries=max", "segmenter.keep=best", "segmenter.validate_every=4")
    best_by_sum = tiny_config(tmp_path, "segmenter.keep=best", "segmenter.validate_every=4")
    told = [training_inputs(config, "ray") for config in (plain, other, best, best_by_sum)]
    assert told[0] == told[1]
    assert told[2]["merge_queries"] == "max"
    assert "merge_queries" not in told[3]
    own = segmenter_spec(other)
    stored = segmenter_files(new_segmenter(own), own)["segmenter.json"]
    assert stored == segmenter_files(new_segmenter(own), segmenter_spec(plain))["segmenter.json"]


def test_a_change_of_the_clip_backbone_is_told_by_name(tmp_path: Path):
    """Weights of another design would not fit: the training is not gone on with."""
    config = tiny_config(tmp_path, "segmenter.backbone={model_type: clip}")
    assert training_inputs(config, "ray")["clip_backbone"] > 1
    assert "clip_backbone" not in training_inputs(tiny_config(tmp_path), "ray")


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path):
    config = tiny_config(tmp_path, "segmenter.learning_rate=1e30", "segmenter.clip_norm=null")
    job = make_job(config, make_run(tmp_path))
    with pytest.raises(
        ValueError, match=r"the loss of segmenter/round-1 is nan .* lower segmenter.learning_rate"
    ) as told:
        train_segmenter(job, make_board(), rank=0, num_workers=1)
    # Nothing goes on drawing crops, though the error keeps the training's frames alive: Ray, shut down under such a
    # thread, ends the process.
    assert told.traceback
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]
