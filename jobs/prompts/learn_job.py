"""What the driver tells the workers that learn prompts, and the snapshots that they keep."""

from __future__ import annotations

from dataclasses import dataclass

from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.config.prompts import LearnSection
from fmwsss.jobs.prompts.batches import BatchSource

SNAPSHOTS = "snapshots/"


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


def snapshots(run: Run, stage: str) -> list[int]:
    """The iterations at which a stage left a snapshot of its prompts.

    Args:
        run: the run folder.
        stage: name.

    Returns:
        Iterations, in no order.
    """
    names = run.folder.child(stage).list(SNAPSHOTS)
    return [int(name.removeprefix(SNAPSHOTS).partition(".")[0]) for name in names]


def snapshot_file(iteration: int) -> str:
    """The name of the snapshot before an iteration, in the folder of its stage."""
    return f"{SNAPSHOTS}{iteration:08d}.safetensors"
