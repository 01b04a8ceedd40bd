"""Stage `segmenter`: a segmenter is trained on the seeds, in rounds if asked: train, refine its labels, train again."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from ray.train import get_context

from cluster.events import EventLog
from cluster.ledger import Receipt, Run
from cluster.models import pick_device
from cluster.progress import StageProgress, watch_board
from cluster.replicas import use_threads
from cluster.segmenters import SegmenterSpec, new_segmenter, segmenter_files
from cluster.training import plan_training, sum_gradients, train
from fmwsss_core.segmenter.base import Segmenter
from fmwsss_core.segmenter.crops import CropSettings
from fmwsss_core.segmenter.schedule import backward, clip_gradients, make_optimizer, poly_factor, set_rates
from jobs import checkpoint, predict, refine
from jobs.batches import batches_per_epoch
from jobs.config import RunConfig, SegmenterSection
from jobs.crops import CropSource
from jobs.predict import BEST, LAST, kept_folder, round_stage, segmenter_spec
from jobs.stage import StageError, begin_stage, finish_stage, upstream
from jobs.watch import pictures, validation_miou

HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class TrainJob:
    """Everything a worker needs; travels to it as it is."""

    run: Run
    stage: str
    spec: SegmenterSpec
    source: CropSource
    section: SegmenterSection
    num_iterations: int
    per_epoch: int
    random_seed: int
    num_threads: int
    checkpoint_every_s: float
    validation: Run | None
    precision: Literal["float32", "bfloat16"]


def run(config: RunConfig, run: Run) -> Receipt | None:
    """Trains the run's segmenter, if its file has a section for one; between two rounds the seeds are made anew.

    Raises:
        ValueError: the seeds are not complete, the network cannot be made as asked, or there is nothing to learn from.
    """
    section = config.segmenter
    if section is None:
        return None
    receipt = None
    for number in range(1, section.rounds + 1):
        receipt = _train_round(config, run, section, number)
        if number < section.rounds:
            _relabel(config, run, section, number)
    return receipt


def labels_of_round(number: int) -> tuple[str, str]:
    """Stage and column of the labels that a round is trained on: the fine seeds, then the refined predictions."""
    return ("seeds/fine", "seed") if number == 1 else (f"{round_stage(number - 1)}/refined", "labels")


def choose_engine(section: SegmenterSection) -> Literal["ray", "detectron2"]:
    """The engine that the run file names, or else detectron2 where it is installed; a choice of ours is said."""
    if section.engine:
        return section.engine
    if importlib.util.find_spec("detectron2"):
        return "detectron2"
    print("segmenter: detectron2 is not installed; training with Ray Train (engine: ray)", flush=True)
    return "ray"


def _train_round(config: RunConfig, run: Run, section: SegmenterSection, number: int) -> Receipt:
    stage = round_stage(number)
    labels = labels_of_round(number)
    images, seeds = upstream(run, stage, ["images", labels[0]])
    engine = choose_engine(section)
    only_watched = {"preview_every", "rounds", "keep", "micro_batches"}
    inputs = {
        "segmenter": {**section.model_dump(mode="json", exclude=only_watched), "engine": engine},
        "classes": list(config.resolve_vocabulary().classes),
        "random_seed": config.random_seed,
    }
    started = begin_stage(run, stage, inputs, [images, seeds])
    if started.receipt:
        return started.receipt
    if seeds.num_rows < 1:
        raise StageError(f"stage {stage}: there is no seed to learn from")
    if section.confidence_weights and not config.seeds.confidence:
        raise StageError(
            "segmenter.confidence_weights needs the confidences of the seeds: set seeds.confidence to true"
        )
    plan = plan_training(config.cluster.train_workers)
    if min(section.batch_size, seeds.num_rows) < plan.most_workers:
        raise StageError(f"cluster.train_workers is {plan.most_workers}, more than the images of a batch")
    spec = segmenter_spec(config)
    new_segmenter(spec)  # a setting that is wrong should be told before workers start
    crop_settings = CropSettings(
        section.crop_px, section.short_side_px, section.scale_range, section.category_cap, section.distort, section.flip
    )
    job = TrainJob(
        run=run,
        stage=stage,
        spec=spec,
        source=CropSource(
            run, tuple(images.parts), labels, section.confidence_weights, section.batch_size, crop_settings,
            config.random_seed,
        ),
        section=section,
        num_iterations=section.iterations,
        per_epoch=batches_per_epoch(seeds.num_rows, section.batch_size),
        random_seed=config.random_seed,
        num_threads=config.cluster.num_threads,
        checkpoint_every_s=config.cluster.checkpoint_every_s,
        validation=predict.ingest_validation(config, run) if section.validate_every else None,
        precision=section.precision or ("bfloat16" if plan.use_gpu else "float32"),
    )  # fmt: skip
    if engine == "detectron2":
        from jobs.detectron2_engine import train_loop as loop
    else:
        loop = train_loop
    with StageProgress(stage, section.iterations, "iterations") as progress, watch_board(progress) as board:
        train(loop, {"job": job, "board": board}, plan, scratch=run.folder.child(f"{stage}/_ray_train"))
    folder = run.folder.child(stage)
    folder.delete([name for name in folder.list("_checkpoint")])
    return finish_stage(run, started, parts=[LAST], num_rows=seeds.num_rows, num_failures=0)


def _relabel(config: RunConfig, run: Run, section: SegmenterSection, number: int) -> Receipt:
    """New seeds by the segmenter of round `number`: of an image's own classes only, refined by its superpixels."""
    stage = round_stage(number)
    (trained,) = upstream(run, stage, [stage])
    model = run.folder.child(stage).child(kept_folder(section))
    predict.predict_images(
        config, run, segmenter_spec(config), model, trained, f"{stage}/{predict.PREDICTED}", restrict=True
    )
    method = config.predict.refine or "sams"
    return refine.refine_images(config, run, f"{stage}/{predict.PREDICTED}", f"{stage}/{predict.REFINED}", method)


def train_loop(settings: dict[str, Any]) -> None:
    """Engine `ray`: what every worker of the Ray job runs."""
    train_segmenter(settings["job"], settings["board"], get_context().get_world_rank(), get_context().get_world_size())


def train_segmenter(job: TrainJob, board: Any, rank: int, num_workers: int) -> None:
    """One worker's part of a training: its share of each batch, gradients summed, the same step everywhere.

    Args:
        job: what to train, on what; a checkpoint in its stage is gone on from.
        board: where the first worker tells its progress (`cluster.progress.Board`).
        rank: of this worker.
        num_workers: in torch's process group, which is there if there is more than one.

    Raises:
        ValueError: the loss is not finite.
    """
    section = job.section
    use_threads(job.num_threads)
    device = torch.device(pick_device())
    segmenter = prepare(new_segmenter(job.spec).to(device), num_workers)
    optimizer = make_optimizer(
        segmenter, section.optimizer, section.learning_rate, section.weight_decay, section.backbone_multiplier
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    folder = job.run.folder.child(job.stage)
    first, history = checkpoint.restore(folder, segmenter, optimizer)
    board.set.remote(first, "")

    def sum_over_workers(values: torch.Tensor) -> torch.Tensor:
        if num_workers > 1:
            torch.distributed.all_reduce(values)
        return values

    last_saved_s = time.monotonic()
    log = EventLog(folder, first, job.checkpoint_every_s) if rank == 0 else None
    batches = job.source.batches(first, job.num_iterations, job.per_epoch, rank, num_workers)
    for iteration, batch in enumerate(batches, start=first):
        set_rates(optimizer, poly_factor(iteration, job.num_iterations, section.power, section.warmup_iterations))
        seed_step(job.random_seed, iteration, rank)
        optimizer.zero_grad()
        images, labels = batch.images.to(device), batch.labels.to(device)
        weights = batch.weights.to(device) if batch.weights is not None else None
        parts = backward(
            segmenter, images, labels, weights, batch.random_seeds, section.micro_batches, job.precision,
            sum_over_workers,
        )  # fmt: skip
        if num_workers > 1:
            sum_gradients(parameters)
        clip_gradients(parameters, section.clip_norm)
        optimizer.step()
        done = iteration + 1
        if is_logged(iteration, job.num_iterations):
            losses = sum_over_workers(torch.stack([*parts.values()])).tolist()
            entry = log_entry(job, iteration, dict(zip(parts, losses, strict=True)))
            if log:
                history.append(entry)
                log_scalars(log, entry)
                board.set.remote(done, f"loss {entry['loss']:.3f}")
        if log is None:
            continue
        if done % section.preview_every == 0 or done == job.num_iterations:
            log.picture(done, "crop-label-prediction", pictures(segmenter, batch))
        _validate(job, segmenter, done, history, log)
        if time.monotonic() - last_saved_s > job.checkpoint_every_s:
            last_saved_s = time.monotonic()
            checkpoint.save(folder, segmenter, optimizer, done, history)
    if log:
        log.save()
        finish(job, segmenter, history)


def prepare(segmenter: Segmenter, num_workers: int) -> Segmenter:
    """In training mode; with several workers on GPUs, batch norms see the whole batch."""
    if num_workers > 1 and next(segmenter.parameters()).is_cuda:
        converted: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
        return converted.train()
    return segmenter.train()


def seed_step(random_seed: int, iteration: int, rank: int) -> None:
    """What layers draw at random in one step (dropout, drop path) depends on nothing that came before."""
    torch.manual_seed(np.random.SeedSequence((random_seed, iteration, rank)).generate_state(1)[0].item())


def is_logged(iteration: int, num_iterations: int) -> bool:
    """Whether the loss of an iteration is written down: of all the first, later about a thousand, and the last."""
    return iteration < 100 or iteration % max(1, num_iterations // 1000) == 0 or iteration + 1 == num_iterations


def log_entry(job: TrainJob, iteration: int, parts: dict[str, float]) -> dict[str, float]:
    """One line of the history.

    Raises:
        ValueError: the loss is not finite.
    """
    total = sum(parts.values())
    if not math.isfinite(total):
        raise ValueError(f"the loss of {job.stage} is {total} at iteration {iteration}; lower segmenter.learning_rate")
    factor = poly_factor(iteration, job.num_iterations, job.section.power, job.section.warmup_iterations)
    return {"iteration": iteration, "learning_rate": job.section.learning_rate * factor, "loss": total, **parts}


def log_scalars(log: EventLog, entry: dict[str, float]) -> None:
    """One line of the history as TensorBoard has it: after how many iterations."""
    log.scalars(int(entry["iteration"]) + 1, {name: value for name, value in entry.items() if name != "iteration"})


def finish(job: TrainJob, segmenter: Segmenter, history: list[dict[str, float]]) -> None:
    """Writes the trained segmenter and the history of its loss."""
    folder = job.run.folder.child(job.stage)
    folder.write(HISTORY_FILE, json.dumps(history).encode())
    folder.child(LAST).write_many(segmenter_files(segmenter, job.spec))


def _validate(job: TrainJob, segmenter: Segmenter, done: int, history: list[dict[str, float]], log: EventLog) -> None:
    every = job.section.validate_every
    if not every or job.validation is None or (done % every and done != job.num_iterations):
        return
    miou = validation_miou(segmenter, job.validation, job.spec.short_side_px)
    segmenter.train()
    log.scalars(done, {"validation_miou": miou})
    best = max((entry.get("validation_miou", -1.0) for entry in history), default=-1.0)
    if history:
        history[-1]["validation_miou"] = miou
    if miou > best:
        job.run.folder.child(job.stage).child(BEST).write_many(segmenter_files(segmenter, job.spec))


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("train")
