"""Stage `images`: every image of the dataset read, checked and stored with its labels, in shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from fmwsss.cluster.execution.rows import summary
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.storage.ledger import INPUTS, Receipt, Run, part_index, part_name
from fmwsss.core.schemas import IMAGES
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, ShardCost, Stage
from fmwsss.jobs.images import digest, record
from fmwsss.jobs.images.image_rows import Reading, demand_indices, reading_of, row_or_failure
from fmwsss.jobs.images.readers.base import DatasetError
from fmwsss.jobs.images.readers.registry import read_dataset
from fmwsss.jobs.images.update import bring_up_to_date
from fmwsss.jobs.stages import begin_stage, make_stage, run_sharded

STAGE = record.STAGE


def images_stage(config: RunConfig, home: str = "") -> Stage:
    """The stage that takes the images of the dataset into the run: read | check | write, one task a shard.

    What it depends on is the content of the dataset, which `record` keeps, and not the words of the run file.

    Args:
        config: the run file.
        home: folder of the run in the run that the images go to, with a slash at its end; empty for the run itself.
    """
    return Stage(
        name=f"{home}{STAGE}",
        unit="images",
        reads=(),
        settings=lambda: {"classes": list(config.resolve_vocabulary().classes), "shard_rows": config.shard_rows},
        make=lambda stage, run: _make(config, stage, run),
        refresh=lambda stage, run, stages, relearn: bring_up_to_date(config, run, stage, stages, relearn),
        cost=ShardCost(requests_per_image=2 if config.dataset.kind == "toy" else 4, requests_per_part=2),
    )


DECLARATIONS = (
    Declaration(
        STAGE,
        "Read the images and their labels, check them, write them as shards.",
        lambda config: [images_stage(config)],
        old_names=("ingest",),
    ),
)


def run(config: RunConfig, run: Run) -> Receipt:
    """Takes the images of the dataset into the run.

    Args:
        config: the run file.
        run: the run folder.

    Returns:
        The receipt of the stage.

    Raises:
        ValueError: the dataset is empty or can't be read, or every image failed.
    """
    return make_stage(images_stage(config), run, config.max_failures)


def _make(config: RunConfig, stage: Stage, run: Run) -> Receipt:
    own, _ = run.within(stage.name)
    complete, rows = own.receipt(STAGE), record.read_record(own, STAGE)
    if complete is None and rows is None and own.folder.child(STAGE).exists(INPUTS):
        # Begun by a release that kept no record: which image is in which of its shards is not known.
        own.do_again(STAGE, own.parts(STAGE))
    started = begin_stage(run, stage.name, stage.inputs(), [])
    if complete:
        return complete
    if rows is None:
        listing = read_dataset(config.dataset, config.resolve_vocabulary().classes, config.labels.is_tagged)
        if not listing.is_told:
            tell(digest.of_listing(listing, config.resolve_vocabulary().classes))
        demand_indices(listing.sources, reading_of(config))
        rows = record.rows_of(listing.sources, config.shard_rows)
        record.write_record(own, STAGE, rows)
    parts = [part_name(index) for index in range(1 + max(row["shard"] for row in rows))]
    arguments = {
        "run": own,
        "sources": ray.put(pa.Table.from_pylist(rows, schema=record.RECORD)),
        "reading": reading_of(config),
    }
    receipt = run_sharded(run, started, parts, len(rows), [Operator(ingest_shard, arguments)], config.max_failures)
    tell(digest.of_images(own, STAGE, receipt.parts, config.resolve_vocabulary().classes))
    return receipt


def tell(lines: Sequence[str]) -> None:
    """Prints the lines of a digest."""
    for line in lines:
        print(f"images: {line}", flush=True)


def demand_readable(config: RunConfig, run: Run, stage: bool | str = True) -> None:
    """Before failed images are read again: whether their parts' other images still can be.

    Args:
        config: the run file.
        run: the run folder.
        stage: the only stage whose failures are tried again, or True for all.

    Raises:
        ValueError: the dataset is not there, or no longer the one that was read.
    """
    failed = run.failed_parts(STAGE) if stage in (True, STAGE) else {}
    rows = record.read_record(run, STAGE)
    if not failed or run.receipt(STAGE) is None:
        return
    if rows is None:
        raise DatasetError("an earlier release took these images: failed ones can't be tried again; `--from images`")
    bad = set(run.failures(STAGE)["image_id"].to_pylist())
    shards = {part_index(part) for part in failed}
    wanted = [row for row in rows if row["shard"] in shards and row["image_id"] not in bad]
    now = record.tokens_of([record.source_of(row) for row in wanted])
    for row, token in zip(wanted, now, strict=True):
        if "absent" in token:
            raise DatasetError(
                f"{row['image_url']} is no longer there: it is good in this run, and would be lost by a retry"
            )


def ingest_shard(block: pa.Table, run: Run, sources: ray.ObjectRef, reading: Reading) -> pa.Table:
    """Reads the images of one part and writes it, with its failures.

    Args:
        block: of one row, which names the part.
        run: the run folder.
        sources: the rows of RECORD of the whole dataset, in Ray's object store.
        reading: how the images are read.

    Returns:
        One row of counts.
    """
    part = block["part"][0].as_py()
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    table: pa.Table = ray.get(sources)
    for source in table.take(np.flatnonzero(table["shard"].to_numpy() == part_index(part))).to_pylist():
        row = row_or_failure(source, reading)
        (failures if "error_type" in row else rows).append(row)
    return summary(part, run.write_part(STAGE, part, rows, IMAGES, failures), len(failures))
