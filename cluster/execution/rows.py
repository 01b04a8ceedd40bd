"""Blocks on their way through the operators of a stage: one block is one shard, one row is one image or its failure.

An exception in an operator would fail the whole job, and Ray Data's own tolerance drops whole blocks; so errors are
caught per row here and travel with the block to the operator that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from fmwsss.cluster.execution.heartbeat import beat
from fmwsss.cluster.execution.machine_faults import kind_of
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.receipts import StageFile
from fmwsss.core.schemas import FAILURES, failure_row

SUMMARY = pa.schema(
    [
        ("part", pa.string()), ("num_rows", pa.int64()), ("num_failures", pa.int64()),
        ("file", pa.string()), ("num_bytes", pa.int64()), ("sha256", pa.string()),
    ]
)  # fmt: skip


def carried(payload: Sequence[pa.Field]) -> pa.Schema:
    """The schema of a block between two operators: where the row belongs, its payload, or else its failure."""
    own = [("part", pa.string()), ("image_id", pa.string())]
    return pa.schema([*own, *payload, ("failure", pa.struct(list(FAILURES)))])


def start_rows(part: str, rows: Iterable[Mapping[str, Any]], payload: Sequence[pa.Field]) -> pa.Table:
    """The block of one shard. A shard without images becomes one row without an id: Ray Data loses empty blocks.

    Args:
        part: the shard.
        rows: `image_id` and the payload of each image.
        payload: fields of the block beside the carried ones.

    Returns:
        A table of `carried(payload)`, never empty.
    """
    schema = carried(payload)
    filled = [{"part": part, "failure": None, **row} for row in rows]
    return pa.Table.from_pylist(filled or [{"part": part}], schema=schema)


def keep_images(block: pa.Table, known: Container[str]) -> pa.Table:
    """The rows of a block whose images are known. Where none is left, one row without an id, as of an empty shard.

    Args:
        block: a table of `carried(...)`.
        known: image ids that stay.

    Returns:
        A table of the same schema, never empty.
    """
    kept = block.filter(pa.array([image_id in known for image_id in block["image_id"].to_pylist()], pa.bool_()))
    return kept if kept.num_rows else start_rows(block["part"][0].as_py(), [], list(block.schema)[2:-1])


def map_rows(
    block: pa.Table,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    payload: Sequence[pa.Field],
    stage: str,
) -> pa.Table:
    """Applies a function to every image of a block; what it raises becomes the failure of that image alone.

    Args:
        block: a table of `carried(...)`.
        function: row -> payload of the new row.
        payload: fields that the function returns.
        stage: name of the stage, for the failures table.

    Returns:
        A table of `carried(payload)`; images that had failed before come through as they are.

    Raises:
        Exception: whatever `function` raised that is a fault of the machine, not of the image.
    """
    rows = []
    for row in _one_by_one(block):
        new = {"part": row["part"], "image_id": row["image_id"], "failure": row["failure"]}
        if row["image_id"] is not None and row["failure"] is None:
            try:
                new.update(function(row))
            except Exception as error:
                if kind_of(error) is not None:
                    raise  # not this image's fault
                new["failure"] = failure_row(row["image_id"], stage, error)
        rows.append(new)
        beat()
    return pa.Table.from_pylist(rows, schema=carried(payload))


def _one_by_one(block: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a block, each converted when it is asked for: of their pixels, two images' are copied at the most."""
    for index in range(block.num_rows):
        yield from block.slice(index, 1).to_pylist()


def split_rows(block: pa.Table, schema: pa.Schema) -> tuple[pa.Table, list[dict[str, Any]]]:
    """What the last operator writes: the rows of a block in `schema`, and its failures.

    Args:
        block: a table of `carried(...)` with the fields of `schema`.
        schema: of the rows that are written.

    Returns:
        The rows of images without a failure, and the rows of FAILURES.
    """
    failures = [failure for failure in block["failure"].to_pylist() if failure is not None]
    good = [
        image_id is not None and failure is None
        for image_id, failure in zip(block["image_id"].to_pylist(), block["failure"].to_pylist(), strict=True)
    ]
    return block.filter(pa.array(good, pa.bool_())).select(schema.names).cast(schema), failures


def write_block(block: pa.Table, run: Run, stage: str, schema: pa.Schema, png_column: str | None = None) -> pa.Table:
    """The end of a stage: writes the part of a block and its failures, and returns its counts.

    Args:
        block: a table of `carried(...)` with the fields of `schema`.
        run: the run folder.
        stage: where the part goes.
        schema: of the rows that are written.
        png_column: of labels that are written as PNG files too, before the part: a part that is there is complete.
    """
    part = block["part"][0].as_py()
    rows, failures = split_rows(block, schema)
    if png_column:
        names = rows["image_id"].to_pylist()
        files = {f"png/{name}.png": data for name, data in zip(names, rows[png_column].to_pylist(), strict=True)}
        run.folder.child(stage).write_many(files)
    file = run.write_part(stage, part, rows, schema, failures)
    few = run.images_again(stage, part)
    return summary(part, file, len(failures) if few is None else run.num_failures_of(stage, part))


def summary(part: str, file: StageFile, num_failures: int) -> pa.Table:
    """The only thing that a stage sends to the driver: the file of one shard, and counts.

    Args:
        part: the shard.
        file: that holds its rows.
        num_failures: of its images.

    Returns:
        One row of SUMMARY.
    """
    row = {"part": part, "num_rows": file.rows, "num_failures": num_failures}
    row |= {"file": file.name, "num_bytes": file.bytes, "sha256": file.sha256}
    return pa.Table.from_pylist([row], schema=SUMMARY)
