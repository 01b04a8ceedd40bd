"""What the workers of a training do (engine `ray`); the engine `detectron2` takes from it what both do the same way."""

from __future__ import annotations

import time
from typing import Any

import torch

from fmwsss.cluster.execution.gradients import GradientSum, sum_over_workers
from fmwsss.cluster.models.device import pick_device, use_threads
from fmwsss.cluster.models.segmenters import new_segmenter, segmenter_files
from fmwsss.cluster.telemetry.tensorboard import EventLog
from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.core.segmenter.optimizer import (
    backward,
    clip_gradients,
    has_batch_norm,
    make_optimizer,
    poly_factor,
    set_rates,
)
from fmwsss.jobs.run_layout import BEST
from fmwsss.jobs.segmenter.crops import CropBatch
from fmwsss.jobs.segmenter.monitor import pictures, validation_miou
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.segmenter.train_step import finish, is_logged, log_entry, log_scalars, prepare, seed_step
from fmwsss.jobs.training import checkpoint
from fmwsss.jobs.training.prefetch import pinned, prefetched, sent


def train_loop(settings: dict[str, Any]) -> None:
    """Engine `ray`: what every worker of the Ray job runs."""
    from ray.train import get_context

    train_segmenter(settings["job"], settings["board"], get_context().get_world_rank(), get_context().get_world_size())


def train_segmenter(job: TrainJob, board: Any, rank: int, num_workers: int) -> None:
    """One worker's part of a training: its share of each batch, gradients summed, the same step everywhere.

    Args:
        job: what to train, on what; a checkpoint in its stage is gone on from.
        board: where the first worker tells its progress (`fmwsss.cluster.telemetry.progress.Board`).
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
    # In the order of the network, not in that of the groups: it is that of the backward pass, the other way round.
    learned = {*parameters}
    sums = GradientSum([p for p in segmenter.parameters() if p in learned]) if num_workers > 1 else None
    folder = job.run.folder.child(job.stage)
    first, history = checkpoint.restore(folder, segmenter, optimizer)
    board.set.remote(first, "")

    def summed(values: torch.Tensor) -> torch.Tensor:
        return sum_over_workers(values, num_workers)

    def before_pass(is_last: bool) -> None:
        if sums is not None:
            sums.is_last = is_last

    def make_ready(batch: CropBatch) -> tuple[CropBatch, torch.Tensor]:
        return pinned(batch, device), segmenter.measure(batch.labels, batch.weights)

    share = -(-section.batch_size // num_workers)
    fitting = FittingBatch(asked := -(-share // section.micro_batches))
    # Batch norms look at all that goes through together, on GPUs at that of all workers: it must not change.
    micro_batches = section.micro_batches if has_batch_norm(segmenter) else fitting
    last_saved_s = time.monotonic()
    log = EventLog(folder, first, job.checkpoint_every_s, board.tell.remote) if rank == 0 else None
    drawn = job.source.batches(first, job.num_iterations, rank, num_workers, job.num_feeders)
    with prefetched(drawn, make_ready, device) as batches:
        for iteration, (batch, own_sums) in enumerate(batches, start=first):
            schedule = (section.power, section.warmup_iterations, section.rate_floor)
            set_rates(optimizer, poly_factor(iteration, job.num_iterations, *schedule))
            seed_step(job.random_seed, iteration, rank)
            optimizer.zero_grad()
            here = sent(batch, device)
            if sums is not None:
                sums.begin()
            parts = backward(
                segmenter, here.images, here.labels, here.weights, batch.random_seeds, micro_batches, job.precision,
                summed, own_sums=own_sums, before_pass=before_pass,
            )  # fmt: skip
            if sums is not None:
                sums.finish()
            clip_gradients(parameters, section.clip_norm)
            optimizer.step()
            done = iteration + 1
            if is_logged(iteration, job.num_iterations):
                losses = summed(torch.stack([*parts.values()])).tolist()
                entry = log_entry(job, iteration, dict(zip(parts, losses, strict=True)))
                if log:
                    history.append(entry)
                    log_scalars(log, entry)
                    size = fitting.size
                    less = "" if size == asked else f", {size} at a time: memory was too small for {asked}"
                    board.set.remote(done, f"loss {entry['loss']:.3f}{less}")
            if log is None:
                continue
            if done % section.preview_every == 0 or done == job.num_iterations:
                log.picture(done, "crop-label-prediction", pictures(segmenter, batch))
            _validate(job, segmenter, done, history, log)
            if time.monotonic() - last_saved_s > job.checkpoint_every_s:
                checkpoint.save(folder, segmenter, optimizer, done, history)
                last_saved_s = (
                    time.monotonic()
                )  # after it: a save that takes longer is not followed by the next at once
    if log:
        log.save()
        finish(job, segmenter, history)


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
