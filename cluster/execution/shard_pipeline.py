"""Shards through a chain of operators with Ray Data: one block is one shard from the first operator to the last.

The last operator writes its shard and gives back one row of counts; nothing else comes to the driver.
"""

from __future__ import annotations

import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.util import metrics

from fmwsss.cluster.execution import heartbeat as pulse
from fmwsss.cluster.execution import machine_faults, ray_compat, stopping
from fmwsss.cluster.execution.image_by_image import do_alone
from fmwsss.cluster.execution.machine_faults import MachineFault
from fmwsss.cluster.storage.folder import StorageError
from fmwsss.core.errors import FmwsssError, UnexpectedError

# A worker that dies (killed for its memory, a lost node, a crash in native code) is replaced and its shard done again;
# Ray Data alone would do so for ever.
NUM_RETRIES = 3
# Shards that may fail before the rest is given up: the others are still done, and the next start has only these left.
NUM_TOLERATED = 3
# Over an actor's whole life: spot machines may vanish all day long; one that dies as it starts is not tried for ever.
NUM_RESTARTS = 100
# One shard waits at an actor while it works on another; more would share the fate of one that crashes it.
NUM_SHARDS_IN_FLIGHT = 2
# Travels with a block beside its rows: which operator had it, where, when and for how long; JSON in the first row.
TIMINGS = "_timings"
# Of a task that feeds a training loop: it shares its machine with the loop, which waits for it.
STREAM_CPUS = 0.25
# Each round of Ray Data's loop costs milliseconds: a hundred a second (`quick_polling`) take a sixth of a core from
# shards that last for a minute. So it rests for a share of the time since a task was last finished.
REST_SHARE, LONGEST_REST_S = 0.02, 0.1
STREAM_BLOCK_BYTES = 32 << 20
# Where its tasks wait for room, Ray Data's loop goes round without a pause, in the process of the training loop, which
# then waits for the interpreter more than it computes.
STREAM_PAUSE_S = 0.25
FAILED = pa.schema(
    [*((name, pa.string()) for name in ("part", "error_type", "message", "traceback")), ("is_of_user", pa.bool_())]
)


class ShardError(FmwsssError, RuntimeError):
    """Shards that could not be done; the line names them and the reason. What was written stays."""


@dataclass(frozen=True)
class Operator:
    """One step of a chain, from table to table, on resources of its own.

    Attributes:
        function: `function(block, **arguments)`, or a class with `__init__(**arguments)` and `__call__(block)`, whose
            instances live as long as the chain runs (a loaded model). A block has a column `part`, and is never empty.
        arguments: small and picklable.
        num_cpus: logical CPUs of one task or one actor; a fraction where it mostly waits.
        num_gpus: GPUs of one, fractions allowed.
        num_replicas: the fixed number of actors of a class; of no meaning for a function.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_replicas: int = 1


def map_shards(
    shards: Sequence[Mapping[str, Any]],
    operators: Sequence[Operator],
    on_done: Callable[[dict[str, Any]], None],
    no_progress_timeout_s: float = 1800,
    stage: str = "",
    on_timings: Callable[[list[dict[str, Any]]], None] | None = None,
) -> None:
    """Send shards through operators in parallel.

    Args:
        shards: each describes one shard, small: its `part` (unique) and what the first operator needs to find it. Comes
            to that operator as a table of one row.
        operators: the last returns a table of one row, its `part` among the columns.
        on_done: called here with that row as soon as the shard is done, in any order.
        no_progress_timeout_s: how long nothing at all may happen before that is an error (no shard goes from one
            operator to the next and `map_rows` finishes no image: one that hangs, or resources that never
            come).
        stage: whose metrics they are.
        on_timings: called here with each shard's times as events of Chrome's trace format, one for each operator.

    Raises:
        StorageError: a folder could not be read or written.
        ShardError: some shards could not be done for another reason that a user can put right; unless they are many,
            all others are.
        UnexpectedError: so it is with a mistake of ours, whose traceback is the cause.
    """
    left = {shard["part"] for shard in shards}
    assert len(left) == len(shards), "two shards have one name"
    failed: list[dict[str, Any]] = []
    num_not_begun = 0
    if not shards:
        return
    try:
        with stopping.draining(), closing(_rows(shards, operators, no_progress_timeout_s, stage)) as rows:
            again = _alone(shards, left, operators, no_progress_timeout_s, stage)
            for row in chain(rows, again, _image_by_image(shards, left, operators, stage)):
                timings = json.loads(row.pop(TIMINGS))
                if on_timings:
                    on_timings(timings)
                left.remove(row["part"])
                if "error_type" not in row:
                    on_done(row)
                    continue
                if row["error_type"] == stopping.NotBegun.__name__:
                    num_not_begun += 1
                    continue
                failed.append(row)
                if len(failed) > NUM_TOLERATED or row["error_type"] == StorageError.__name__:
                    break
    except ExecutionTimeoutError:
        reason = f"no image finished within {no_progress_timeout_s:g} s; pending resource requests: see `ray status`"
        raise ShardError(_line(left, reason)) from None
    except RayError as error:
        raise ShardError(_line(left, _reason(left))) from error
    except MachineFault as error:
        raise ShardError(_line(left, str(error))) from error
    if failed:
        first = failed[0]
        if first["error_type"] == StorageError.__name__:
            raise StorageError(first["message"])
        kind = ShardError if first["is_of_user"] else UnexpectedError
        reason = first["message"] if first["is_of_user"] else f"{first['error_type']}: {first['message']}"
        raise kind(_line({row["part"] for row in failed}, reason)) from RuntimeError(first["traceback"])
    if num_not_begun:
        raise ShardError(f"stage {stage} was asked to end: {num_not_begun} of {len(shards)} shards were not begun")
    if left:
        raise ShardError(_line(left, _reason(left)))


def stream_shards(
    shards: Sequence[Mapping[str, Any]],
    function: Callable[..., Iterator[pa.Table]],
    arguments: Mapping[str, Any],
    batch_rows: int,
    num_tasks: int,
) -> Iterator[pa.Table]:
    """What a function makes of shards, in their order, in tables of `batch_rows` rows: the way into a training loop.

    Tasks on any node work ahead of where their rows are wanted, as far as the object store allows.

    Args:
        shards: each describes one shard, small; comes to the function as a table of one row.
        function: `function(block, **arguments)` yields tables.
        arguments: small and picklable.
        batch_rows: rows of each table that comes out; of the last one perhaps fewer.
        num_tasks: shards at work at a time.
    """
    context = DataContext.get_current().copy()
    ray_compat.call_back(context, _Pause)
    context.target_max_block_size = STREAM_BLOCK_BYTES
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray_compat.quick_polling(), DataContext.current(context):
        dataset = ray.data.from_arrow([pa.Table.from_pylist([dict(shard)]) for shard in shards])
        dataset = ray_compat.map_whole_blocks(
            dataset,
            function,
            num_cpus=STREAM_CPUS,
            compute=TaskPoolStrategy(size=num_tasks),
            fn_kwargs=dict(arguments),
            max_retries=NUM_RETRIES,
        )
        yield from dataset.iter_batches(batch_size=batch_rows, batch_format="pyarrow", prefetch_batches=1)  # type: ignore[misc]


class _Rest(ray_compat.ExecutionCallback):
    """Lets Ray Data look for finished tasks the less often the longer there was none, and hear of finished images."""

    def __init__(self) -> None:
        self.num_finished, self.since_s = 0, time.monotonic()
        self.heard, self.listened_s = pulse.heard(), time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """See the module's REST_SHARE, and `fmwsss.cluster.execution.heartbeat`."""
        self._listen(executor)
        num_finished = ray_compat.num_finished_tasks(executor)
        if num_finished is None or num_finished != self.num_finished:
            self.num_finished, self.since_s = num_finished, time.monotonic()
        time.sleep(min(REST_SHARE * (time.monotonic() - self.since_s), LONGEST_REST_S))

    def _listen(self, executor: Any) -> None:
        if time.monotonic() - self.listened_s < pulse.BEAT_S:
            return
        heard, self.listened_s = pulse.heard(), time.monotonic()
        if heard != self.heard:
            self.heard = heard
            # Of all that Ray Data looks at, a shard at work is as good as one that hangs.
            ray_compat.note_progress(executor, self.listened_s)


class _Pause(ray_compat.ExecutionCallback):
    """Gives the training loop time between two rounds of Ray Data's."""

    def on_execution_step(self, executor: Any) -> None:
        """See the module's STREAM_PAUSE_S."""
        time.sleep(STREAM_PAUSE_S)


_DIED = f"a worker died {NUM_RETRIES + 1} times over it (out of memory, or a crash in native code; see Ray's logs)"


def _line(parts: set[str], reason: str) -> str:
    few = ", ".join(sorted(parts)[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
    return f"not done: {few}: {reason}"


def _rows(
    shards: Sequence[Mapping[str, Any]],
    operators: Sequence[Operator],
    no_progress_timeout_s: float,
    stage: str,
    num_in_flight: int = NUM_SHARDS_IN_FLIGHT,
) -> Generator[dict[str, Any], None, None]:
    context = DataContext.get_current().copy()
    # A block is a shard, however large: Ray Data would cut it at 128 MB.
    context.target_max_block_size = None
    # Blocks whose workers died; what an operator raises does not come this way.
    context.max_errored_blocks = NUM_TOLERATED
    context.execution_no_progress_timeout_s = no_progress_timeout_s
    ray_compat.call_back(context, _Rest)
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray_compat.quick_polling(), DataContext.current(context):
        dataset = ray.data.from_arrow([pa.Table.from_pylist([dict(shard)]) for shard in shards])
        # What a replica has done is written in any case.
        last_begun = max((index for index, own in enumerate(operators) if isinstance(own.function, type)), default=0)
        for index, operator in enumerate(operators):
            dataset = _append(dataset, operator, stage, num_in_flight, index <= last_begun)
        batch: Any
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()


def _alone(
    shards: Sequence[Mapping[str, Any]], left: Set[str], operators: Sequence[Operator], timeout_s: float, stage: str
) -> Iterator[dict[str, Any]]:
    """Shards that are left when all others are done, again, none waiting behind another.

    An actor that dies takes along the shard that waits at it, and would do so at every retry.
    """
    if len(left) > 1:
        again = [shard for shard in shards if shard["part"] in left]
        yield from _rows(again, operators, timeout_s, stage, num_in_flight=1)


def _image_by_image(
    shards: Sequence[Mapping[str, Any]], left: Set[str], operators: Sequence[Operator], stage: str
) -> Iterator[dict[str, Any]]:
    """Shards over which workers died even when they were alone, again: the image that does it becomes a failure."""
    for shard in [shard for shard in shards if shard["part"] in left]:
        row = do_alone(shard, operators, _call, _Replica, stage)
        if row is not None:
            yield row


def _reason(parts: Set[str]) -> str:
    """Why workers died over parts: as one of them said, if any did."""
    told = next((told for part in sorted(parts) if (told := machine_faults.told_of(part))), None)
    return f"{_DIED}: {told['message']}" if told else _DIED


def _append(
    dataset: ray.data.Dataset, operator: Operator, stage: str, num_in_flight: int, may_end: bool
) -> ray.data.Dataset:
    arguments = {"function": operator.function, "arguments": dict(operator.arguments), "stage": stage}
    function: Callable[..., Any]
    if isinstance(operator.function, type):
        function = _Replica
        pool = ActorPoolStrategy(size=operator.num_replicas, max_tasks_in_flight_per_actor=num_in_flight)
        options: dict[str, Any] = {"fn_constructor_kwargs": {**arguments, "may_end": may_end}, "compute": pool}
        options |= {"max_restarts": NUM_RESTARTS, "max_task_retries": NUM_RETRIES}
    else:
        function = _begin if may_end else _call
        options = {"fn_kwargs": arguments, "max_retries": NUM_RETRIES}
    return ray_compat.map_whole_blocks(
        dataset,
        function,
        num_cpus=operator.num_cpus,
        num_gpus=operator.num_gpus,
        **options,
    )


def _call(block: pa.Table, function: Callable[..., pa.Table], arguments: Mapping[str, Any], stage: str) -> pa.Table:
    """What a function returns, or, if it raises, a row that says so and passes through the operators after it.

    An exception would end the whole job, and Ray Data would log it at length and advise the user to report it to Ray.
    """
    timings: list[dict[str, Any]] = []
    if TIMINGS in block.schema.names:
        timings = json.loads(block[TIMINGS][0].as_py())
        block = block.drop_columns([TIMINGS])
    part = block["part"][0].as_py()
    started, begin_s = time.time(), time.perf_counter()
    if block.schema.equals(FAILED):
        result = block
    else:
        try:
            result = function(block, **arguments)
        except Exception as error:
            kind = None if isinstance(error, StorageError) else machine_faults.kind_of(error)
            if kind is not None:
                machine_faults.leave(part, error, kind)
            result = _failed(part, error)
    name = getattr(function, "__name__", type(function).__name__)
    seconds = time.perf_counter() - begin_s
    timings.append(_trace_event(stage, name, part, started, seconds))
    num_rows, busy_s = _measures()
    num_rows.inc(block.num_rows, {"stage": stage, "operator": name})
    busy_s.inc(max(seconds, 1e-9), {"stage": stage, "operator": name})
    told = pa.array([json.dumps(timings), *[None] * (result.num_rows - 1)], pa.string())
    return result.append_column(TIMINGS, told)


def _begin(block: pa.Table, function: Callable[..., pa.Table], arguments: Mapping[str, Any], stage: str) -> pa.Table:
    """As `_call`, but once the run is to end a shard comes back as one that was not begun."""
    return _call(block, _refuse, {}, stage) if stopping.is_asked() else _call(block, function, arguments, stage)


def _refuse(block: pa.Table) -> pa.Table:
    raise stopping.NotBegun


class _Replica:
    """The same for a class: neither its constructor nor its calls raise."""

    def __init__(self, function: type, arguments: Mapping[str, Any], stage: str, may_end: bool = False) -> None:
        self.stage, self.call = stage, _begin if may_end else _call
        self.instance: Callable[..., pa.Table]
        try:
            self.instance = function(**arguments)
        except Exception as error:
            self.instance = functools.partial(_raise, error=error)

    def __call__(self, block: pa.Table) -> pa.Table:
        return self.call(block, self.instance, {}, self.stage)


def _raise(block: pa.Table, error: Exception) -> pa.Table:
    raise error


@functools.cache
def _measures() -> tuple[metrics.Counter, metrics.Counter]:
    tags = ("stage", "operator")
    return (
        metrics.Counter("fmwsss_rows", "rows that went into an operator: images, or shards before the first", tags),
        metrics.Counter("fmwsss_busy_seconds", "wall time inside of an operator", tags),
    )


def _trace_event(stage: str, name: str, part: str, started: float, seconds: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": stage,
        "name": name,
        "pid": ray.get_runtime_context().get_node_id()[:8],
        "tid": os.getpid(),
        "ts": round(started * 1e6),
        "dur": round(seconds * 1e6),
        "args": {"part": part},
    }


def _failed(part: str, error: Exception) -> pa.Table:
    row = {
        "part": part,
        "error_type": StorageError.__name__ if isinstance(error, StorageError) else type(error).__name__,
        "message": " ".join(str(error).split()),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        "is_of_user": isinstance(error, FmwsssError),
    }
    return pa.Table.from_pylist([row], schema=FAILED)
