"""Stage `prompts/classification` and `prompts/segmentation`: a Ray Train job learns one set of prompts."""

from __future__ import annotations

import io
import json
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from ray.train import get_context

from cluster.ledger import Receipt, Run
from cluster.models import ModelSpec, load_clip
from cluster.progress import StageProgress, watch_board
from cluster.replicas import use_threads
from cluster.storage import Folder
from cluster.training import plan_training, train
from fmwsss_core.learning import learning_rate, make_optimizer, prompt_loss, share_of
from fmwsss_core.prompts import PromptLearner
from jobs.batches import BatchSource, batches_per_epoch
from jobs.config import LearnSection, RunConfig
from jobs.stage import begin_stage, finish_stage, upstream

PROMPTS_FILE = "prompts.safetensors"
HISTORY_FILE = "history.json"
CHECKPOINT_FILE = "_checkpoint.pt"


@dataclass(frozen=True)
class LearnJob:
    """Everything a worker needs; travels to it as it is."""

    run: Run
    stage: str
    clip: ModelSpec
    source: BatchSource
    section: LearnSection
    num_iterations: int
    per_epoch: int
    random_seed: int
    num_threads: int
    checkpoint_every_s: float


def run(config: RunConfig, run: Run, which: Literal["classification", "segmentation"]) -> Receipt:
    """Learns one set of prompts from the run's images, and from the coarse seeds for the segmentation prompts.

    Raises:
        ValueError: the stages before it are not complete, or there is no image to learn from.
    """
    stage = f"prompts/{which}"
    section: LearnSection = getattr(config.learn, which)
    before = ["images"] if which == "classification" else ["images", "seeds/coarse"]
    receipts = upstream(run, stage, before)
    inputs = {
        "clip": config.clip.model_dump(),
        "vocabulary": config.model_dump()["vocabulary"],
        "learn": section.model_dump(mode="json"),
        "random_seed": config.random_seed,
    }
    started = begin_stage(run, stage, inputs, receipts)
    if started.receipt:
        return started.receipt
    num_images = receipts[-1].num_rows
    if num_images == 0:
        raise ValueError(
            f"stage {stage}: there is no image to learn from; `fmwsss failures` tells what happened to them"
        )
    per_epoch = batches_per_epoch(num_images, section.batch_size)
    num_iterations = max(1, round(section.epochs * per_epoch))
    plan = plan_training(config.cluster.train_workers)
    smallest = min(section.batch_size, num_images)
    if smallest < plan.num_workers:
        raise ValueError(f"cluster.train_workers is {plan.num_workers}, more than the {smallest} images of a batch")
    source = BatchSource(
        run=run,
        parts=tuple(receipts[0].parts),
        seed_stage="seeds/coarse" if which == "segmentation" else None,
        vocabulary=config.resolve_vocabulary(),
        batch_size=section.batch_size,
        augment=section.augment.model_dump(),
        random_seed=config.random_seed,
    )
    job = LearnJob(
        run=run,
        stage=stage,
        clip=config.clip.spec(),
        source=source,
        section=section,
        num_iterations=num_iterations,
        per_epoch=per_epoch,
        random_seed=config.random_seed,
        num_threads=config.cluster.num_threads,
        checkpoint_every_s=config.cluster.checkpoint_every_s,
    )
    with StageProgress(stage, num_iterations, "iterations") as progress, watch_board(progress) as board:
        train(train_loop, {"job": job, "board": board}, plan, scratch=run.folder.child(f"{stage}/_ray_train"))
    run.folder.child(stage).delete([CHECKPOINT_FILE])
    return finish_stage(run, started, parts=[PROMPTS_FILE], num_rows=num_images, num_failures=0)


def train_loop(settings: dict[str, Any]) -> None:
    """What every worker runs: its share of each batch, gradients averaged, the same step everywhere."""
    job: LearnJob = settings["job"]
    section = job.section
    use_threads(job.num_threads)
    rank, num_workers = get_context().get_world_rank(), get_context().get_world_size()
    clip = load_clip(job.clip)
    learner = PromptLearner(
        clip, job.source.vocabulary, context=section.context, name_position=section.name_position,
        num_context=section.num_context, init_std=section.init_std, backgrounds=section.backgrounds,
        num_backgrounds=section.num_backgrounds, seed=job.random_seed,
    ).to(clip.device)  # fmt: skip
    optimizer = make_optimizer(learner, section.learning_rate, section.momentum, section.weight_decay)
    folder = job.run.folder.child(job.stage)
    first, history = _restore(folder, learner, optimizer)
    settings["board"].set.remote(first, "")
    last_saved_s = time.monotonic()
    batches = job.source.batches(first, job.num_iterations, job.per_epoch, rank, num_workers)
    for iteration, batch in enumerate(batches, start=first):
        rate = learning_rate(
            iteration,
            job.num_iterations,
            section.learning_rate,
            section.warmup_iterations,
            section.warmup_learning_rate,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        labels = batch.labels.to(clip.device) if batch.labels is not None else None
        loss = prompt_loss(clip, learner, batch.images.to(clip.device), batch.present.to(clip.device), labels)
        num_pairs, num_pixels = _sum_over_workers([loss.num_pairs, loss.num_pixels], num_workers, clip.device)
        contrastive = loss.contrastive * share_of(loss.num_pairs, int(num_pairs))
        cam = loss.cam * share_of(loss.num_pixels, int(num_pixels))
        (contrastive + section.cam_loss_weight * cam).backward()
        _sum_gradients(learner, num_workers)
        optimizer.step()
        mcl, cal = _sum_over_workers([float(contrastive), float(cam)], num_workers, clip.device)
        total = mcl + section.cam_loss_weight * cal
        if not math.isfinite(total):
            raise ValueError(f"the loss of {job.stage} is {total} at iteration {iteration}; lower its learning_rate")
        if rank != 0:
            continue
        history.append({"iteration": iteration, "learning_rate": rate, "loss": total, "mcl": mcl, "cal": cal})
        settings["board"].set.remote(iteration + 1, f"loss {total:.3f}")
        if time.monotonic() - last_saved_s > job.checkpoint_every_s:
            last_saved_s = time.monotonic()
            _save(folder, learner, optimizer, iteration + 1, history)
    if rank == 0:
        folder.write(HISTORY_FILE, json.dumps(history).encode())
        folder.write(PROMPTS_FILE, learner.to_bytes())


def _sum_over_workers(values: list[float], num_workers: int, device: torch.device) -> list[float]:
    if num_workers == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def _sum_gradients(learner: PromptLearner, num_workers: int) -> None:
    for parameter in learner.parameters() if num_workers > 1 else ():
        assert parameter.grad is not None
        torch.distributed.all_reduce(parameter.grad)


def _save(
    folder: Folder,
    learner: PromptLearner,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    history: list[dict[str, float]],
) -> None:
    buffer = io.BytesIO()
    state = {
        "learner": learner.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": iteration,
        "history": history,
    }
    torch.save(state, buffer)
    folder.write(CHECKPOINT_FILE, buffer.getvalue())


def _restore(
    folder: Folder, learner: PromptLearner, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Goes on where an earlier start stopped: the iteration to begin with, and the history until there."""
    if not folder.exists(CHECKPOINT_FILE):
        return 0, []
    state = torch.load(io.BytesIO(folder.read(CHECKPOINT_FILE)), weights_only=True, map_location="cpu")
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"], state["history"]


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("learn")
