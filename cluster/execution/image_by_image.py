"""A shard over which workers died, again: one image after the other in a process of its own.

The image that kills that process too becomes a row of the failures table; its neighbours come through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from fmwsss.cluster.execution import machine_faults
from fmwsss.cluster.execution.machine_faults import MachineFault
from fmwsss.core.schemas import failure_row

NUM_TRIES = 2  # a process may die of somebody else's doing
NUM_RETRIES = 3  # of what comes before and after the models


class WorkerDied(RuntimeError):  # noqa: N818 - the name says what happened
    """An image that ended every process that had it."""


def do_alone(
    shard: Mapping[str, Any], operators: Sequence[Any], call: Any, replica: type, stage: str
) -> dict[str, Any] | None:
    """One shard through its operators, image by image through all but the first and the last.

    Args:
        shard: what the first operator needs.
        operators: of `shard_pipeline`.
        call: (block, function, arguments, stage) -> block; of `shard_pipeline`, and never raises.
        replica: the class of actors of `shard_pipeline`.
        stage: for the failures table.

    Returns:
        What the last operator returned; None where a worker died over the whole shard, or there is nothing in between.

    Raises:
        MachineFault: workers left because of their machines, not of an image; the message names one of them.
    """
    if len(operators) < 3:
        return None
    first, *middle, last = operators
    table = pa.Table.from_pylist([dict(shard)])
    try:
        block = _whole(call, table, first, stage)
        for operator in middle:
            block = _one_by_one(_without_timings(block), operator, replica, str(shard["part"]), stage)
        (row,) = _whole(call, block, last, stage).to_pylist()
    except RayError:
        return None
    return row


def _whole(call: Any, block: pa.Table, operator: Any, stage: str) -> pa.Table:
    task = ray.remote(call).options(num_cpus=operator.num_cpus, num_gpus=operator.num_gpus, max_retries=NUM_RETRIES)
    return ray.get(task.remote(block, operator.function, dict(operator.arguments), stage))


def _one_by_one(block: pa.Table, operator: Any, replica: type, part: str, stage: str) -> pa.Table:
    alone: Any = None
    done: list[pa.Table | None] = []
    failures: dict[int, dict[str, Any]] = {}
    for index in range(block.num_rows):
        row = block.slice(index, 1)
        result = None
        for attempt in range(1, NUM_TRIES + 1):
            alone = alone or _start(operator, replica, stage)
            try:
                result = ray.get(alone.__call__.remote(row))
                break
            except RayTaskError:
                raise  # a mistake of ours: what is called here never raises
            except RayError:
                alone = None
                told = machine_faults.told_of(part)
                is_first = not any(table is not None for table in done)
                if told and told["kind"] == "machine" and is_first and (index or block.num_rows == 1):
                    # No image at all comes through here.
                    raise MachineFault(told["message"]) from None
                if attempt == NUM_TRIES:
                    reason = told["message"] if told else "out of memory, or a crash in native code"
                    died = WorkerDied(f"every process that had this image died ({reason})")
                    failures[index] = failure_row(row["image_id"][0].as_py(), stage, died)
        done.append(result)
    if alone is not None:
        ray.kill(alone)
    for table in done:
        if table is not None and "error_type" in table.column_names:
            return table  # what ends the shard, whatever becomes of the other images
    schema = next((table.schema for table in done if table is not None), block.schema)
    told_rows = [
        table if table is not None else _failed_row(block.slice(index, 1), schema, failures[index])
        for index, table in enumerate(done)
    ]
    return _without_timings(pa.concat_tables(told_rows))


def _without_timings(block: pa.Table) -> pa.Table:
    """Without the column that goes with a whole block in its first row."""
    return block.drop_columns([name for name in block.column_names if name.startswith("_")])


def _start(operator: Any, replica: type, stage: str) -> Any:
    if not isinstance(operator.function, type):
        raise MachineFault("a worker died over a function that has no replicas")
    actor = ray.remote(replica).options(num_cpus=operator.num_cpus, num_gpus=operator.num_gpus, max_restarts=0)
    return actor.remote(operator.function, dict(operator.arguments), stage)


def _failed_row(row: pa.Table, schema: pa.Schema, failure: dict[str, Any]) -> pa.Table:
    known = {"part": row["part"][0].as_py(), "image_id": row["image_id"][0].as_py(), "failure": failure}
    return pa.Table.from_pylist([{name: known.get(name) for name in schema.names}], schema=schema)
