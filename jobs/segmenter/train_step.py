"""The training step that both engines share: preparation, seeding, logging."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch

from fmwsss.cluster.models.segmenters import segmenter_files
from fmwsss.cluster.telemetry.tensorboard import EventLog
from fmwsss.core.errors import InputError
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.core.segmenter.optimizer import poly_factor
from fmwsss.jobs.run_layout import LAST
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.training import checkpoint


def prepare(segmenter: Segmenter, num_workers: int) -> Segmenter:
    """In training mode; with several workers on GPUs, batch norms see the whole batch.

    Args:
        segmenter: changed in place.
        num_workers: of the process group.

    Returns:
        The segmenter that is trained.
    """
    if num_workers > 1 and next(segmenter.parameters()).is_cuda:
        converted: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
        return converted.train()
    return segmenter.train()


def seed_step(random_seed: int, iteration: int, rank: int) -> None:
    """What layers draw at random in one step (dropout, drop path) depends on nothing that came before.

    Args:
        random_seed: of the run.
        iteration: from 0.
        rank: of this worker.
    """
    torch.manual_seed(np.random.SeedSequence((random_seed, iteration, rank)).generate_state(1)[0].item())


def is_logged(iteration: int, num_iterations: int) -> bool:
    """Whether the loss of an iteration is written down: of all the first, later about a thousand, and the last.

    Args:
        iteration: from 0.
        num_iterations: of the whole training.
    """
    return iteration < 100 or iteration % max(1, num_iterations // 1000) == 0 or iteration + 1 == num_iterations


def log_entry(job: TrainJob, iteration: int, parts: dict[str, float]) -> dict[str, float]:
    """One line of the history.

    Args:
        job: what is trained.
        iteration: from 0.
        parts: weighted losses by name, means over the whole batch.

    Returns:
        Iteration, rate, and losses by name.

    Raises:
        ValueError: the loss is not finite.
    """
    total = sum(parts.values())
    if not math.isfinite(total):
        raise InputError(f"the loss of {job.stage} is {total} at iteration {iteration}; lower segmenter.learning_rate")
    schedule = (job.section.power, job.section.warmup_iterations, job.section.rate_floor)
    factor = poly_factor(iteration, job.num_iterations, *schedule)
    return {"iteration": iteration, "learning_rate": job.section.learning_rate * factor, "loss": total, **parts}


def log_scalars(log: EventLog, entry: dict[str, float]) -> None:
    """One line of the history as TensorBoard has it: after how many iterations.

    Args:
        log: of TensorBoard.
        entry: of `log_entry`.
    """
    log.scalars(int(entry["iteration"]) + 1, {name: value for name, value in entry.items() if name != "iteration"})


def finish(job: TrainJob, segmenter: Segmenter, history: list[dict[str, float]]) -> None:
    """Writes the trained segmenter and the history of its loss.

    Args:
        job: what was trained.
        segmenter: trained.
        history: of `log_entry`.
    """
    folder = job.run.folder.child(job.stage)
    folder.write(checkpoint.HISTORY_FILE, json.dumps(history).encode())
    folder.child(LAST).write_many(segmenter_files(segmenter, job.spec))
