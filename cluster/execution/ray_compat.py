"""The one file that uses what Ray does not promise; each use falls back on its public interface where Ray has changed.

Tried with Ray 2.60, the range of pyproject.toml.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.data
from ray.data._internal.execution import streaming_executor_state
from ray.experimental import internal_kv

from fmwsss.core.errors import InputError

try:
    from ray.data._internal.execution.execution_callback import ExecutionCallback  # pyright: ignore[reportAssignmentType]
except ImportError:  # then `DataContext` asks for no callbacks of this kind, and those below are never called

    class ExecutionCallback:  # pyright: ignore[reportRedeclaration]
        """Stands in for Ray's class of the same name."""


_POLL_SETTING = "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"
_POLL_S = 0.01


def call_back(context: Any, kind: type[ExecutionCallback]) -> None:
    """Has Ray Data call a class of callbacks in each round of its loop.

    Args:
        context: a `DataContext` of one's own.
        kind: made anew for each execution.
    """
    context.custom_execution_callback_classes = [kind]


@contextlib.contextmanager
def quick_polling() -> Iterator[None]:
    """Makes Ray Data look for finished tasks every 10 ms instead of every 100 ms, for the length of a `with`.

    Its loop waits for all tasks at once, so short shards would stand in line for it. There is no public setting; where
    this one is gone, Ray's own pace stays.
    """
    before = getattr(streaming_executor_state, _POLL_SETTING, None)
    if before is None:
        yield
        return
    setattr(streaming_executor_state, _POLL_SETTING, _POLL_S)
    try:
        yield
    finally:
        setattr(streaming_executor_state, _POLL_SETTING, before)


def num_finished_tasks(executor: Any) -> int | None:
    """Tasks that the operators of a running dataset have finished; None where Ray no longer tells.

    Args:
        executor: what Ray Data gives to `ExecutionCallback.on_execution_step`.
    """
    try:
        return sum(operator.metrics.num_tasks_finished for operator in executor._topology)
    except AttributeError:
        return None


def note_progress(executor: Any, at_s: float) -> None:
    """Tells Ray Data's watchdog of progress that it cannot see: an image finished inside of a task.

    Where the watchdog is another one, `execution_no_progress_timeout_s` counts finished tasks alone.

    Args:
        executor: as in `num_finished_tasks`.
        at_s: when, on the clock of `time.monotonic`.
    """
    guard = getattr(executor, "_no_progress_guard", None)
    if hasattr(guard, "_last_progress_time"):
        guard._last_progress_time = at_s  # type: ignore[union-attr]


def map_whole_blocks(dataset: ray.data.Dataset, function: Callable[..., Any], **options: Any) -> ray.data.Dataset:
    """`Dataset.map_batches` with whole blocks as batches, on GPUs too, and with bounds on retries.

    The public method refuses whole blocks on a GPU, and from Ray 2.64 on takes no bounds on retries; it is a check and
    a warning in front of the one used here. Where that is gone the public one is called, whose refusal says so.

    Args:
        dataset: what is mapped.
        function: from table to table, or a class of such functions.
        options: as for `map_batches`.

    Returns:
        The mapped dataset.
    """
    mapper: Callable[..., ray.data.Dataset] = getattr(dataset, "map_batches_internal", dataset.map_batches)
    return mapper(function, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **options)


def is_worker() -> bool:
    """Whether this process is a worker that Ray started, and not a driver or a program without Ray."""
    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def put_note(key: str, value: str) -> None:
    """Leaves a short text with Ray's head for every process of the cluster; without a cluster nothing happens.

    Args:
        key: unique in the cluster.
        value: a short text; replaces what was there.
    """
    if internal_kv._internal_kv_initialized():
        internal_kv._internal_kv_put(key, value, overwrite=True)


def read_note(key: str) -> bytes | None:
    """The text that `put_note` left under this key."""
    return internal_kv._internal_kv_get(key)


def delete_note(key: str) -> None:
    """Takes away what `put_note` left under this key, if anything.

    Args:
        key: unique in the cluster.
    """
    internal_kv._internal_kv_del(key)


def object_store_bytes() -> tuple[int, int]:
    """Bytes that went through the object store since Ray started, and those of them that had to go to disk.

    Raises:
        InputError: this Ray does not tell.
    """
    try:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    except ImportError:
        raise InputError(f"Ray {ray.__version__} does not tell what went through its object store") from None
    stats = get_memory_info_reply(get_state_from_address()).store_stats
    return stats.cumulative_created_bytes, stats.spilled_bytes_total


def torch_trainer(controllers: list[Any]) -> type[Any]:
    """Ray Train's `TorchTrainer`, leaving SIGINT to its owner: its own handler would stay after the training.

    Where Ray has no such hook any more the class is the public one, and the caller takes the signal back afterwards.

    Args:
        controllers: gets the actor of each training, so that an interrupted one can be aborted.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            controllers.append(controller)

    return Trainer
