"""Stage `prompts/classification` and `prompts/segmentation`: a Ray Train job learns one set of prompts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from ray.train import get_context

from cluster.events import EventLog, peak_memory_bytes
from cluster.ledger import PROMPTS_FILE, Receipt, Run
from cluster.models import ModelSpec, load_clip
from cluster.progress import StageProgress, watch_board
from cluster.replicas import use_threads, uses_bfloat16
from cluster.storage import Folder
from cluster.training import plan_training, sum_gradients, train
from fmwsss_core.clip import FrozenClip
from fmwsss_core.last_block import LastBlock, MapProduct
from fmwsss_core.learning import PromptLoss, learning_rate, make_optimizer, prompt_loss, share_of
from fmwsss_core.prompts import PromptLearner
from fmwsss_core.vocabulary import Vocabulary
from jobs import checkpoint
from jobs.batches import Batch, BatchSource, count_rows
from jobs.config import LearnSection, RunConfig
from jobs.encode import shapes_of, stage_of
from jobs.examples import load_examples
from jobs.stage import StageError, begin_stage, finish_stage, upstream

HISTORY_FILE = "history.json"
SNAPSHOTS = "snapshots/"
NUM_LOOKS = 20  # how often the example maps are looked at while one set of prompts is learned


@dataclass(frozen=True)
class Renewal:
    """Seeds that are made anew while prompts are learned from them.

    Attributes:
        every: iterations between two sets of seeds.
        make: the seeds for the iterations from this one on, as the name of their stage.
        drop: deletes a stage that is no longer needed.
    """

    every: int
    make: Callable[[int], str]
    drop: Callable[[str], None]


@dataclass(frozen=True)
class LearnJob:
    """Everything a worker needs; travels to it as it is.

    Attributes:
        stop: the iteration to stop before; less than `num_iterations` where seeds are renewed on the way.
        snapshot_every: iterations between two saved states of the prompts, or None.
        num_feeders: tasks that draw batches for each worker.
    """

    run: Run
    stage: str
    clip: ModelSpec
    source: BatchSource
    section: LearnSection
    num_iterations: int
    stop: int
    snapshot_every: int | None
    random_seed: int
    num_threads: int
    num_feeders: int
    checkpoint_every_s: float


def run(
    config: RunConfig, run: Run, which: Literal["classification", "segmentation"], renewal: Renewal | None = None
) -> Receipt:
    """Learns one set of prompts from the run's images, and from the coarse seeds for the segmentation prompts.

    Args:
        config: the run file.
        run: the run folder.
        which: the set of prompts.
        renewal: where the coarse seeds come from in joint mode; None takes the stage `seeds/coarse`.

    Raises:
        ValueError: the stages before it are not complete, or there is no image to learn from.
    """
    stage = f"prompts/{which}"
    section: LearnSection = getattr(config.learn, which)
    feature_stage = stage_of(config, which) if section.cache else None
    before = ["images", *([feature_stage] if feature_stage else [])]
    before += {"classification": [], "segmentation": ["seeds/coarse"]}[which]
    receipts = upstream(run, stage, before)
    inputs = {
        "clip": config.clip.model_dump(),
        "vocabulary": config.model_dump()["vocabulary"],
        "learn": section.model_dump(mode="json"),
        "joint_every": config.learn.joint_every,
        "random_seed": config.random_seed,
    }
    started = begin_stage(run, stage, inputs, receipts)
    if started.receipt:
        return started.receipt
    parts = tuple(receipts[0].parts)
    source = BatchSource(
        run=run,
        parts=parts,
        part_rows=count_rows(run, parts, before),
        seed_stage="seeds/coarse" if which == "segmentation" else None,
        feature_stage=feature_stage,
        feature_shapes=tuple(shapes_of(load_clip(config.clip.spec()), section)) if feature_stage else (),
        num_views=section.cached_views,
        vocabulary=config.resolve_vocabulary(),
        batch_size=section.batch_size,
        augment=section.augment.model_dump(),
        random_seed=config.random_seed,
    )
    if source.num_images == 0:
        raise StageError(
            f"stage {stage}: there is no image to learn from; the failures table tells what happened to them"
        )
    num_iterations = section.num_iterations(source.batches_per_epoch)
    if section.warmup_iterations >= num_iterations:
        raise StageError(
            f"stage {stage} takes {num_iterations} iterations, and learn.{which}.warmup_iterations is "
            f"{section.warmup_iterations}: nothing would be learned; lower it"
        )
    plan = plan_training(config.cluster.train_workers)
    if source.rows_per_batch < plan.most_workers:
        raise StageError(
            f"cluster.train_workers is {plan.most_workers}, more than the {source.rows_per_batch} images of a batch"
        )
    job = LearnJob(
        run=run,
        stage=stage,
        clip=config.clip.spec(),
        source=source,
        section=section,
        num_iterations=num_iterations,
        stop=num_iterations,
        snapshot_every=config.learn.joint_every if which == "classification" else None,
        random_seed=config.random_seed,
        num_threads=config.cluster.num_threads,
        num_feeders=plan.num_feeders,
        checkpoint_every_s=config.cluster.checkpoint_every_s,
    )
    folder = run.folder.child(stage)
    for begin, stop in _rounds(folder, num_iterations, renewal):
        seed_stage = renewal.make(begin) if renewal else source.seed_stage
        part = replace(job, stop=stop, source=replace(source, seed_stage=seed_stage))
        with StageProgress(stage, num_iterations, "iterations", done=begin) as progress, watch_board(progress) as board:
            train(train_loop, {"job": part, "board": board}, plan, scratch=folder.child("_ray_train"))
        if renewal and seed_stage:
            renewal.drop(seed_stage)
    folder.delete([checkpoint.CHECKPOINT_FILE])
    return finish_stage(run, started, parts=[PROMPTS_FILE], num_rows=source.num_images, num_failures=0)


def _rounds(folder: Folder, num_iterations: int, renewal: Renewal | None) -> list[tuple[int, int]]:
    """Pieces that learn from one set of seeds each, (first iteration, stop), from the one that is not finished on."""
    every = renewal.every if renewal else num_iterations
    done = checkpoint.next_iteration(folder)
    first = min(done, num_iterations - 1) // every * every
    return [(begin, min(begin + every, num_iterations)) for begin in range(first, num_iterations, every)]


def snapshots(run: Run, stage: str) -> list[int]:
    """The iterations at which a stage left a snapshot of its prompts."""
    names = run.folder.child(stage).list(SNAPSHOTS)
    return [int(name.removeprefix(SNAPSHOTS).partition(".")[0]) for name in names]


def snapshot_file(iteration: int) -> str:
    """The name of the snapshot before an iteration, in the folder of its stage."""
    return f"{SNAPSHOTS}{iteration:08d}.safetensors"


def train_loop(settings: dict[str, Any]) -> None:
    """What every worker runs: its share of each batch, gradients averaged, the same step everywhere."""
    job: LearnJob = settings["job"]
    section = job.section
    use_threads(job.num_threads)
    rank, num_workers = get_context().get_world_rank(), get_context().get_world_size()
    clip = load_clip(job.clip)
    learner = make_learner(clip, job.source.vocabulary, section, job.random_seed)
    optimizer = make_optimizer(learner, section.learning_rate, section.momentum, section.weight_decay)
    folder = job.run.folder.child(job.stage)
    first, history = checkpoint.restore(folder, learner, optimizer)
    witness = _Witness(job, clip, learner, settings["board"], first) if rank == 0 else None
    last_saved_s = time.monotonic()
    batches = job.source.batches(first, job.stop, rank, num_workers, job.num_feeders)
    for iteration, batch in enumerate(batches, start=first):
        if rank == 0 and job.snapshot_every and iteration % job.snapshot_every == 0:
            folder.write(snapshot_file(iteration), learner.to_bytes())
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
        loss = batch_loss(clip, learner, batch, section)
        num_pairs, num_pixels = _sum_over_workers([loss.num_pairs, loss.num_pixels], num_workers, clip.device)
        classification = loss.classification * share_of(loss.num_pairs, int(num_pairs))
        cam = loss.cam * share_of(loss.num_pixels, int(num_pixels))
        (classification + section.cam_loss_weight * cam).backward()
        if num_workers > 1:
            sum_gradients(list(learner.parameters()))
        optimizer.step()
        of_logits, of_maps = _sum_over_workers([float(classification), float(cam)], num_workers, clip.device)
        total = of_logits + section.cam_loss_weight * of_maps
        if not math.isfinite(total):
            raise ValueError(f"the loss of {job.stage} is {total} at iteration {iteration}; lower its learning_rate")
        if witness is None:
            continue
        entry = {
            "iteration": iteration,
            "learning_rate": rate,
            "loss": total,
            "classification": of_logits,
            "cam": of_maps,
        }
        history.append(entry | witness.step(iteration, entry))
        if time.monotonic() - last_saved_s > job.checkpoint_every_s:
            last_saved_s = time.monotonic()
            checkpoint.save(folder, learner, optimizer, iteration + 1, history)
    if witness is not None:
        witness.close()
        if job.stop < job.num_iterations:
            checkpoint.save(folder, learner, optimizer, job.stop, history)
            return
        folder.write(HISTORY_FILE, json.dumps(history).encode())
        folder.write(PROMPTS_FILE, learner.to_bytes())


def make_learner(clip: FrozenClip, vocabulary: Vocabulary, section: LearnSection, random_seed: int) -> PromptLearner:
    """The prompts that a section of the run file describes, before they have learned anything."""
    return PromptLearner(
        clip, vocabulary, context=section.context, name_position=section.name_position,
        num_context=section.num_context, init_std=section.init_std, backgrounds=section.backgrounds,
        num_backgrounds=section.num_backgrounds, seed=random_seed,
    ).to(clip.device)  # fmt: skip


def batch_loss(clip: FrozenClip, learner: PromptLearner, batch: Batch, section: LearnSection) -> PromptLoss:
    """The losses of a batch, whose views come as pixels, as cached tokens, or as the cached product."""
    side = -(-section.augment.crop_px // clip.patch_size)
    is_half = uses_bfloat16(section.precision, clip.device.type)
    block: LastBlock | MapProduct
    if batch.images is not None:
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=is_half):
            features = clip.encode_image(clip.preprocess(batch.images.to(clip.device)), with_attention=False)
        block = clip.last_block(features.last_block_input.float())
    else:
        arrays = [array.to(clip.device) for array in batch.features]
        block = clip.last_block(arrays[0]) if section.cache == "input" else MapProduct(arrays[0][:, 0], arrays[1])
    with torch.autocast(clip.device.type, torch.bfloat16, enabled=is_half):
        foreground, background = learner()
    return prompt_loss(
        block, (side, side), clip.logit_scale, foreground, background, batch.present.to(clip.device),
        batch.labels.to(clip.device) if batch.labels is not None else None,
        classification_loss=section.classification_loss, cam_loss=section.cam_loss,
    )  # fmt: skip


class _Witness:
    """Tells of the first worker's progress: a board for the bar, TensorBoard, and looks at example maps."""

    def __init__(self, job: LearnJob, clip: FrozenClip, learner: PromptLearner, board: Any, first: int) -> None:
        self.job, self.clip, self.learner, self.board = job, clip, learner, board
        self.log = EventLog(job.run.folder.child(job.stage), first, job.checkpoint_every_s)
        part = next(part for part, rows in zip(job.source.parts, job.source.part_rows, strict=True) if rows)
        self.examples = load_examples(job.run, part, job.source.vocabulary, clip)
        self.look_every = max(1, job.num_iterations // NUM_LOOKS)
        self.started_s, self.first = time.monotonic(), first
        board.set.remote(first, "")

    def step(self, iteration: int, entry: dict[str, float]) -> dict[str, float]:
        """After a step; returns what a look at the examples found, on the iterations that have one."""
        seconds = max(time.monotonic() - self.started_s, 1e-9)
        speed = (iteration + 1 - self.first) * self.job.source.rows_per_batch / seconds
        scalars = {**entry, "images_per_s": speed, "peak_memory_bytes": peak_memory_bytes(self.clip.device.type)}
        scalars.pop("iteration")
        found: dict[str, float] = {}
        if (iteration + 1) % self.look_every == 0 or iteration + 1 == self.job.num_iterations:
            with torch.no_grad():
                strip, agreement = self.examples.look(*self.learner())
            self.log.picture(iteration, "class_maps", strip)
            found = {} if agreement is None else {"agreement": agreement}
        self.log.scalars(iteration, {**scalars, **found})
        self.board.set.remote(iteration + 1, f"loss {entry['loss']:.3f}, {speed:.0f} images/s")
        return found

    def close(self) -> None:
        """Writes what is left of the log."""
        self.log.save()


def _sum_over_workers(values: list[float], num_workers: int, device: torch.device) -> list[float]:
    if num_workers == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return summed.tolist()


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("learn")
