"""Learning as a Ray Train job: the same prompts however many workers, from cached views, killed or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.jobs import steps as pipeline
from fmwsss.jobs.commands.show_prompts import show
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.prompts import joint as joint_mode
from fmwsss.jobs.prompts.learn_job import snapshot_file, snapshots
from fmwsss.jobs.prompts.train_step import make_learner
from fmwsss.jobs.prompts.views import view_of
from fmwsss.jobs.seeds import seed
from fmwsss.jobs.stages import StageError, make_stage
from fmwsss.jobs.training.checkpoint import HISTORY_FILE
from tests.references import losses as losses_reference
from tests.references import softmax_gradcam as maps_reference

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs" / "demo.yaml")
SMALL = ["dataset.num_images=12", "shard_rows=6", "learn.classification.batch_size=6", "cluster.num_threads=1"]
LEARN = ["images", "features", "prompts/classification"]


def learned(run: Path, which: str = "classification") -> np.ndarray:
    return load((run / "prompts" / which / "prompts.safetensors").read_bytes())["context"]


def learn(run: Path, *more: str, steps: list[str] = LEARN) -> np.ndarray:
    pipeline.run(load_config(DEMO, [f"run={run}", *SMALL, "learn.classification.epochs=2", *more]), steps)
    return learned(run)


def spied_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Rows of every set of seeds that is made from now on, by its stage; those on the way are deleted after use."""
    rows: dict[str, list] = {}

    def spy(stage: Stage, run: Run, *more, **named) -> Any:
        receipt = make_stage(stage, run, *more, **named)
        if stage.name.startswith("seeds/"):
            rows[stage.name] = [row for part in receipt.parts for row in run.read_part(stage.name, part).to_pylist()]
        return receipt

    for module in (pipeline, joint_mode):
        monkeypatch.setattr(module, "make_stage", spy)
    return rows


@pytest.fixture(scope="module")
def alone(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which one worker learned from new views in each of two epochs."""
    run = tmp_path_factory.mktemp("alone")
    learn(run)
    return run


@pytest.mark.parametrize("workers", ["2", pytest.param("[1, 2]", marks=pytest.mark.long)])
def test_two_workers_learn_what_one_learns(alone: Path, tmp_path: Path, workers: str) -> None:
    two = learn(tmp_path, f"cluster.train_workers={workers}")
    assert np.abs(learned(alone) - two).max() <= 1e-6


@pytest.mark.parametrize("kind", ["input", pytest.param("product", marks=pytest.mark.long)])
def test_as_many_cached_views_as_epochs_are_no_cache_at_all(alone: Path, tmp_path: Path, kind: str, capsys) -> None:
    cached = learn(tmp_path, f"learn.classification.cache={kind}", "learn.classification.cached_views=2")
    config = load_config(DEMO)
    clip, section = load_clip(config.clip.spec()), config.learn.classification
    learner = make_learner(clip, config.resolve_vocabulary(), section, config.random_seed)
    moved = np.abs(learned(alone) - learner.context.detach().numpy()).max()
    assert moved > 1e-4
    # The views are the same; what is left is float16.
    assert np.abs(learned(alone) - cached).max() < 0.01 * moved
    shape = {"input": "145 x 128", "product": "1 x 64 + 144 x 64"}[kind]
    assert f"12 images x 2 views x {shape} values in float16" in capsys.readouterr().out
    assert len(list((tmp_path / "features" / "classification").glob("part-*.parquet"))) == 2


def test_history_log_and_checks_before_the_start(alone: Path) -> None:
    folder = alone / "prompts" / "classification"
    history = json.loads((folder / HISTORY_FILE).read_text())
    assert [entry["iteration"] for entry in history] == [0, 1, 2, 3]
    assert all({"loss", "learning_rate", "classification", "cam"} <= entry.keys() for entry in history)
    (log,) = (folder / "logs").iterdir()
    data, tags = log.read_bytes(), set()
    while data:  # length (8 bytes), its checksum (4), event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        tags |= {value.tag for value in event.summary.value}
        data = data[16 + length :]
    assert {"loss", "learning_rate", "images_per_s", "peak_memory_bytes", "class_maps"} <= tags
    with pytest.raises(ValueError, match=r"4 iterations, and learn.classification.warmup_iterations is 9"):
        learn(alone.parent / "other", "learn.classification.warmup_iterations=9")


def test_prompts_are_shown_as_the_words_nearest_to_them(alone: Path, tmp_path: Path, capsys) -> None:
    show(str(alone), None, 2)
    printed = capsys.readouterr().out
    assert "classification prompts: unified, name end" in printed
    assert len([line for line in printed.splitlines() if line.count("(") == 2 and line.count(", ") == 1]) == 16
    with pytest.raises(StageError, match="has no learned segmentation prompts yet"):
        show(str(alone), "segmentation", 2)
    with pytest.raises(StageError, match="holds no run"):
        show(str(tmp_path), None, 2)


def test_prompts_of_another_run_are_taken_or_refused(undisturbed: str, cluster: None, tmp_path: Path) -> None:
    steps = ["images", "prompts"]
    taken = [f"prompts={undisturbed}", "dataset.num_images=2", "learn.classification.cache=input"]
    pipeline.run(load_config(DEMO, [f"run={tmp_path}/new", *taken]), steps)  # without coarse seeds to learn from
    for which in ("classification", "segmentation"):
        there, here = (Path(run, "prompts", which, "prompts.safetensors") for run in (undisturbed, tmp_path / "new"))
        assert there.read_bytes() == here.read_bytes()
    assert not (tmp_path / "new" / "features").exists()
    names = ", ".join(load_config(DEMO).resolve_vocabulary().classes[:-1])
    for override, sentence in [
        (f"vocabulary={{classes: [{names}, spaceship]}}", "were trained with the vocabulary 'toy', not 'custom'"),
        (f"prompts={tmp_path}/nothing", "has no classification prompts"),
    ]:
        with pytest.raises(StageError, match=sentence):
            pipeline.run(load_config(DEMO, [f"run={tmp_path}/{len(sentence)}", *taken, override]), steps)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_joint_mode_with_prompts_that_stand_still_is_the_staged_mode(cluster: None, tmp_path: Path) -> None:
    more = [
        "propose.points_per_side=4", "learn.joint_every=2", "learn.segmentation.batch_size=6",
        "learn.classification.epochs=null", "learn.classification.iterations=3",
        "learn.classification.learning_rate=1e-30", "learn.classification.weight_decay=0",
        "learn.segmentation.epochs=null", "learn.segmentation.iterations=4",
    ]  # fmt: skip
    arguments = [f"run={tmp_path}", *SMALL, *more]
    joint, staged = load_config(DEMO, arguments), load_config(DEMO, [*arguments, "learn.joint_every=null"])
    pipeline.run(joint, ["images", "superpixels", "prompts/classification", "seeds/coarse"])
    run = Run(Folder(str(tmp_path)))
    assert snapshots(run, "prompts/classification") == [0, 2]
    pipeline.run(staged, ["prompts/segmentation"])
    expected = learned(tmp_path, "segmentation")
    run.reset("prompts/segmentation")
    pipeline.run(joint, ["prompts/segmentation"])
    assert np.array_equal(learned(tmp_path, "segmentation"), expected)
    assert run.folder.list("seeds/joint") == [], "seeds on the way are not kept"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("joint_every", ["null", "1"])
def test_a_step_of_the_segmentation_prompts_is_that_of_cal_alone(
    cluster: None, tmp_path: Path, monkeypatch, joint_every: str
) -> None:
    """The paper's weights, staged and joint: one step of a large rate, against autograd through the maps (M2.1 a)."""
    rate = 1e4
    more = [
        "propose.points_per_side=4", f"learn.joint_every={joint_every}", "learn.segmentation.batch_size=12",
        "learn.classification.epochs=null", "learn.classification.iterations=2",
        "learn.segmentation={context: class-specific, name_position: end, backgrounds: named, batch_size: 12, "
        f"iterations: 1, learning_rate: {rate}, weight_decay: 0, mean_over: image, cam_map: rectified, "
        "classification_weight: 0, cam_weight: 1, cam_loss: cal, warmup_iterations: 0, cache: null, "
        "augment: {long_side_px: [112, 160], crop_px: 96}}",
    ]  # fmt: skip
    config = load_config(DEMO, [f"run={tmp_path}", *SMALL, *more])
    run = Run(Folder(str(tmp_path)))
    rows = spied_rows(monkeypatch)
    pipeline.run(config, ["images", "superpixels", "prompts", "seeds/coarse"])
    seeds = rows["seeds/coarse" if joint_every == "null" else "seeds/joint/00000000"]
    seed_of = {row["image_id"]: row["seed"] for row in seeds}

    section, vocabulary, clip = config.learn.segmentation, config.resolve_vocabulary(), load_clip(config.clip.spec())
    learner = make_learner(clip, vocabulary, section, config.random_seed)
    images, labels, present = [], [], torch.zeros(len(seed_of), len(vocabulary.classes), dtype=torch.bool)
    folder = run.folder.child("images")
    pictures = [row for part in folder.list("part-") for row in folder.read_table(part).to_pylist()]
    for shown, row in zip(present, pictures, strict=True):
        image, label = decode_rgb(row["image"], max_pixels=UNLIMITED), decode_label_png(seed_of[row["image_id"]])
        height, width = label.shape
        view = view_of(row["image_id"], height, width, 0, config.random_seed, section.augment.model_dump())
        images.append(view.of_image(image))
        labels.append(view.of_labels(label).long())
        shown[[index - 1 for index in vocabulary.indices(row["classes"])]] = True
    features = clip.encode_image(clip.preprocess(torch.stack(images)))
    foreground, background = learner()
    last = features.last_block_input
    found = maps_reference.softmax_gradcam(clip.model, last, foreground, background, present)
    maps = torch.stack([cam for _, _, cam in found]).reshape(-1, 1, *features.grid)
    up = torch.nn.functional.interpolate(maps, size=labels[0].shape, mode="bilinear", align_corners=False)[:, 0]
    where = torch.tensor([row[:2] for row in found])
    loss = losses_reference.differentiable_cam_activation(up, torch.stack(labels), where[:, 0], where[:, 1])
    expected = torch.autograd.grad(loss, learner.context)[0].numpy()
    taken = (learner.context.detach().numpy() - learned(tmp_path, "segmentation")) / rate
    assert np.abs(taken - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_joint_mode_learns_from_the_seeds_of_its_time(cluster: None, tmp_path: Path, monkeypatch) -> None:
    more = [
        "propose.points_per_side=4", "learn.joint_every=2", "learn.segmentation.batch_size=6",
        "learn.classification.epochs=null", "learn.classification.iterations=4",
        "learn.segmentation.epochs=null", "learn.segmentation.iterations=4",
    ]  # fmt: skip
    config = load_config(DEMO, [f"run={tmp_path}", *SMALL, *more])
    run = Run(Folder(str(tmp_path)))
    seeds_stage, files = seed.seeds_stage, {}

    def spy(config, name, section, prompts, prompts_file="prompts.safetensors", **more):
        files[name] = prompts_file
        return seeds_stage(config, name, section, prompts, prompts_file, **more)

    monkeypatch.setattr(seed, "seeds_stage", spy)
    rows = spied_rows(monkeypatch)
    pipeline.run(config, ["images", "superpixels", "prompts", "seeds/coarse"])
    stages = ["seeds/joint/00000000", "seeds/joint/00000002"]
    assert [name for name in rows if name.startswith("seeds/joint")] == stages
    assert [files[name] for name in stages] == [snapshot_file(0), snapshot_file(2)]
    first, second = (rows[name] for name in stages)
    assert first != second, "the classification prompts have moved on, and the seeds with them"
    before = [run.folder.child("prompts/classification").read(snapshot_file(number)) for number in (0, 2)]
    assert before[0] != before[1]


def fmwsss(step: list[str], run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "fmwsss.jobs", *step, DEMO, f"run={run}", *SMALL, *more]


def train_workers_of(driver: int) -> list[int]:
    """Process ids of the training workers below a driver, whose raylet is its child."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(entry.name)] = (parent, (entry / "cmdline").read_text())
            except (OSError, ValueError):
                continue

    def is_below(pid: int) -> bool:
        while pid in found:
            pid = found[pid][0]
            if pid == driver:
                return True
        return False

    return [pid for pid, (_, command) in found.items() if "RayTrainWorker" in command and is_below(pid)]


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_driver_and_a_killed_worker_change_nothing(tmp_path: Path) -> None:
    more = ["learn.classification.epochs=40", "cluster.checkpoint_every_s=0"]
    subprocess.run(fmwsss(["images"], tmp_path / "killed"), cwd=ROOT, check=True)
    command = fmwsss(["learn", "classification"], tmp_path / "killed", *more)
    checkpoint = tmp_path / "killed" / "prompts" / "classification" / "_checkpoint.pt"
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(checkpoint.exists, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(3)  # the worker ends with its driver, a little later

    left_at = checkpoint.stat().st_mtime_ns
    second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: checkpoint.stat().st_mtime_ns > left_at, second)
    (worker,) = train_workers_of(second.pid)
    os.kill(worker, signal.SIGKILL)
    printed, _ = second.communicate(timeout=500)
    assert second.returncode == 0
    assert not checkpoint.exists()
    assert "prompts/classification: 80 of 80 iterations" in printed
    logs = list((checkpoint.parent / "logs").iterdir())
    assert len(logs) >= 2, "each start has a log of its own"

    subprocess.run(fmwsss(["images"], tmp_path / "undisturbed"), cwd=ROOT, check=True)
    subprocess.run(fmwsss(["learn", "classification"], tmp_path / "undisturbed", *more), cwd=ROOT, check=True)
    assert np.array_equal(learned(tmp_path / "killed"), learned(tmp_path / "undisturbed"))
