"""A Ray Train job: the same loop on one worker or several, restarted when one dies."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
import ray
from ray.exceptions import RayError

from fmwsss.cluster.execution import machine_faults
from fmwsss.cluster.execution.ray_compat import torch_trainer
from fmwsss.cluster.storage.driver_signals import retake_signals
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.errors import FmwsssError, UnexpectedError

NUM_RESTARTS = 3
ABORT_S = 15.0


class TrainingError(FmwsssError, RuntimeError):
    """A training that a user can put right, or whose workers died too often; the first cause, in one line."""


@dataclass(frozen=True)
class TrainPlan:
    """Workers of a training job.

    Attributes:
        num_workers: processes that share each batch; or least and most, and Ray Train takes what there is room for.
        use_gpu: whether each has a GPU of its own.
        num_cpus: logical CPUs of each; below one on small machines, so that tasks that draw batches find room.
        num_feeders: tasks that draw batches, for each worker.
    """

    num_workers: int | tuple[int, int]
    use_gpu: bool
    num_cpus: float
    num_feeders: int

    @property
    def most_workers(self) -> int:
        """The greatest size of the group."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


def plan_training(num_workers: int | tuple[int, int], max_gpus: int | None) -> TrainPlan:
    """A GPU for every worker if the cluster has, or may bring, that many (for the least of them), else none.

    Args:
        num_workers: or least and most.
        max_gpus: GPUs that the cluster's autoscaler may bring; those that were there may have gone home.
    """
    have = ray.cluster_resources()
    gpus = max(have.get("GPU", 0.0), max_gpus or 0)
    least, most = (num_workers, num_workers) if isinstance(num_workers, int) else num_workers
    cpus = have.get("CPU", 1.0)
    # Half of the CPUs at the most: the other half draws batches.
    return TrainPlan(num_workers, gpus >= least, min(1.0, cpus / (2 * most)), max(1, int(cpus / 2 / most)))


def train(
    loop: Callable[[dict[str, Any]], None], settings: Mapping[str, Any], plan: TrainPlan, scratch: Folder
) -> None:
    """Runs `loop(settings)` on every worker, in one process group, until all return.

    Args:
        loop: finds rank and size in `ray.train.get_context()`; started again, it goes on from its own checkpoint.
        settings: small and picklable.
        plan: how many workers, on what.
        scratch: for Ray Train's own files; must be seen by every node. Emptied at the end.

    Raises:
        TrainingError: the loop met what a user can put right, or workers died more often than they are restarted.
        UnexpectedError: the loop raised something else.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    controllers: list[Any] = []

    # Of this attempt alone: what a driver that was replaced still writes there is nobody's state.
    path, filesystem = _arrow_path(scratch.child(uuid.uuid4().hex[:8]))
    resources = {"GPU": 1.0, "CPU": plan.num_cpus} if plan.use_gpu else {"CPU": plan.num_cpus}
    trainer = torch_trainer(controllers)(
        loop,
        train_loop_config=dict(settings),
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers, use_gpu=plan.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="train",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=NUM_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        cause = _first_cause(error)
        line = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:500]
        if isinstance(cause, FmwsssError):
            raise TrainingError(" ".join(str(cause).split())) from error
        # A worker that died, or a machine that lacks something: no mistake of ours.
        is_of_machine = isinstance(cause, RayError) or machine_faults.kind_of(cause) is not None
        raise (TrainingError if is_of_machine else UnexpectedError)(line) from error
    except BaseException:
        for controller in controllers:
            # Without a word where it is gone already.
            with contextlib.suppress(Exception):
                ray.get(controller.abort.remote(), timeout=ABORT_S)
        raise
    finally:
        retake_signals()
        scratch.delete_all()


def _arrow_path(folder: Folder) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """What Ray Train wants: a path without a scheme and a pyarrow filesystem, with the endpoint of the environment."""
    if folder.is_local:
        return folder.url, None
    filesystem, path = fsspec.core.url_to_fs(folder.url)
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))


def _first_cause(error: BaseException) -> BaseException:
    failures = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(failures.values()), error)
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    return cause
