"""What the workers of a learning job do: batches, losses, steps that are the same on all, and the log of the first."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from fmwsss.cluster.execution.gradients import GradientSum, sum_over_workers
from fmwsss.cluster.models.device import use_threads
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.ledger import PROMPTS_FILE
from fmwsss.cluster.telemetry.tensorboard import EventLog, peak_memory_bytes
from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.errors import InputError
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.prompts.objective import learning_rate, make_optimizer
from fmwsss.jobs.prompts.learn_job import LearnJob, snapshot_file
from fmwsss.jobs.prompts.probe_images import load_examples
from fmwsss.jobs.prompts.train_step import batch_loss, make_embedder, make_learner
from fmwsss.jobs.training import checkpoint
from fmwsss.jobs.training.prefetch import pinned, prefetched

READ_EVERY = 10  # steps: to read a loss is to wait for the GPU, which then waits for the next step's launches
NUM_LOOKS = 20  # how often the example maps are looked at while one set of prompts is learned


def train_loop(settings: dict[str, Any]) -> None:
    """What every worker runs: its share of each batch, gradients averaged, the same step everywhere."""
    from ray.train import get_context

    job: LearnJob = settings["job"]
    section = job.section
    use_threads(job.num_threads)
    rank, num_workers = get_context().get_world_rank(), get_context().get_world_size()
    clip = load_clip(job.clip)
    learner = make_learner(clip, job.source.vocabulary, section, job.random_seed)
    optimizer = make_optimizer(learner, section.learning_rate, section.momentum, section.weight_decay)
    folder = job.run.folder.child(job.stage)
    first, history = checkpoint.restore(folder, learner, optimizer)
    embed = make_embedder(clip, learner, section)
    witness = _Witness(job, clip, learner, settings["board"], first) if rank == 0 else None
    sums = GradientSum(list(learner.parameters())) if num_workers > 1 else None
    last_saved_s, views = time.monotonic(), FittingBatch(section.batch_size)
    weights = (section.classification_weight, section.cam_weight)
    steps = _Steps(job, num_workers, history, witness)
    drawn = job.source.batches(first, job.stop, rank, num_workers, job.num_feeders)
    with prefetched(drawn, lambda batch: pinned(batch, clip.device), clip.device) as batches:
        for iteration, batch in enumerate(batches, start=first):
            if job.snapshot_every and iteration % job.snapshot_every == 0:
                steps.read()
                if rank == 0:
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
            if sums is not None:
                sums.begin()
                sums.is_last = True
            loss = batch_loss(clip, embed, batch, section, views)
            counts = sum_over_workers(torch.stack([loss.num_classified, loss.num_mapped]), num_workers)
            weighted, *terms = loss.weighted(*weights, *counts)
            weighted.backward()
            if sums is not None:
                sums.finish()
            optimizer.step()
            steps.add(iteration, rate, torch.stack(terms))
            is_due = witness is not None and time.monotonic() - last_saved_s > job.checkpoint_every_s
            if is_due or len(steps.pending) == READ_EVERY or (iteration + 1) % steps.look_every == 0:
                # Before a look and a checkpoint, of which neither may be of prompts that are not finite.
                steps.read()
            if is_due:
                checkpoint.save(folder, learner, optimizer, iteration + 1, history)
                last_saved_s = (
                    time.monotonic()
                )  # after it: a save that takes longer is not followed by the next at once
        steps.read()
    if witness is not None:
        witness.close()
        if job.stop < job.num_iterations:
            checkpoint.save(folder, learner, optimizer, job.stop, history)
            return
        folder.write(checkpoint.HISTORY_FILE, json.dumps(history).encode())
        folder.write(PROMPTS_FILE, learner.to_bytes())


@dataclass
class _Steps:
    """The losses of steps, on the device until they are read: then checked, told, and put into the history."""

    job: LearnJob
    num_workers: int
    history: list[dict[str, float]]
    witness: _Witness | None
    pending: list[tuple[int, float, float, torch.Tensor]] = field(default_factory=list)

    @property
    def look_every(self) -> int:
        """Iterations between two looks at the example maps."""
        return max(1, self.job.num_iterations // NUM_LOOKS)

    def add(self, iteration: int, rate: float, terms: torch.Tensor) -> None:
        """One step: this worker's part of the two terms of the loss."""
        summed = sum_over_workers(terms.detach().double(), self.num_workers)
        self.pending.append((iteration, rate, time.monotonic(), summed))

    def read(self) -> None:
        """Waits for the device.

        Raises:
            ValueError: a loss is not finite.
        """
        job, pending, self.pending = self.job, self.pending, []
        losses = torch.stack([terms for *_, terms in pending]).tolist() if pending else []
        for (iteration, rate, ended_s, _), (of_logits, of_maps) in zip(pending, losses, strict=True):
            total = job.section.classification_weight * of_logits + job.section.cam_weight * of_maps
            if not math.isfinite(total):
                raise InputError(
                    f"the loss of {job.stage} is {total} at iteration {iteration}; lower its learning_rate"
                )
            if self.witness is None:
                continue
            entry = {
                "iteration": iteration,
                "learning_rate": rate,
                "loss": total,
                "classification": of_logits,
                "cam": of_maps,
            }
            is_last = iteration + 1 == job.num_iterations
            is_looked_at = is_last or (iteration + 1) % self.look_every == 0
            self.history.append(entry | self.witness.step(iteration, ended_s, is_looked_at, entry))


class _Witness:
    """Tells of the first worker's progress: a board for the bar, TensorBoard, and looks at example maps."""

    def __init__(self, job: LearnJob, clip: FrozenClip, learner: PromptLearner, board: Any, first: int) -> None:
        self.job, self.clip, self.learner, self.board = job, clip, learner, board
        self.log = EventLog(job.run.folder.child(job.stage), first, job.checkpoint_every_s, board.tell.remote)
        part = next(part for part, rows in zip(job.source.parts, job.source.part_rows, strict=True) if rows)
        self.examples = load_examples(job.run, part, job.source.vocabulary, clip, job.source.labels)
        self.started_s, self.first = time.monotonic(), first
        board.set.remote(first, "")

    def step(self, iteration: int, ended_s: float, is_looked_at: bool, entry: dict[str, float]) -> dict[str, float]:
        """After a step; returns what a look at the examples found, on the iterations that have one."""
        seconds = max(ended_s - self.started_s, 1e-9)
        speed = (iteration + 1 - self.first) * self.job.source.rows_per_batch / seconds
        scalars = {**entry, "images_per_s": speed, "peak_memory_bytes": peak_memory_bytes(self.clip.device.type)}
        scalars.pop("iteration")
        found: dict[str, float] = {}
        if is_looked_at:
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
