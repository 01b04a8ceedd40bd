"""What every stage has in common: what it depends on, what of it is there, its operators, its receipt."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.cluster.storage.receipts import StageFile
from fmwsss.cluster.telemetry.progress import StageProgress
from fmwsss.jobs.config.renewal import renewed_inputs

VERSIONS_OF = ("fmwsss", "ray", "torch", "open_clip_torch", "segment-anything", "pyarrow", "numpy", "pillow")


JOURNAL_EVERY_S = 10.0  # parts that a killed driver did not note are read again by the next one


class StageError(ValueError):
    """A stage that cannot start, or whose images all failed; the message says what to do."""


@dataclass
class StartedStage:
    """A stage between its begin and its receipt."""

    stage: str
    inputs: dict[str, Any]
    done_parts: set[str]
    receipt: Receipt | None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    started_s: float = field(default_factory=time.monotonic)


def versions() -> dict[str, str]:
    """Packages that the outputs may depend on."""
    return {name: importlib.metadata.version(name) for name in VERSIONS_OF}


def receipt_key(receipt: Receipt) -> str:
    """Names the content of a complete stage: the same settings on the same images have the same key."""
    # Not the number of rows: images that failed may be tried again (cluster/storage/retry.py has what depends on them
    # made again). What was learned is named by its content: learned again, it may be another.
    learned = {file.name: file.sha256 for file in receipt.files if not file.name.startswith("part-")}
    content = [receipt.inputs, receipt.parts, *([learned] if learned else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def upstream(run: Run, stage: str, names: Sequence[str]) -> list[Receipt]:
    """The receipts of the stages that this one reads.

    Raises:
        StageError: one of them is not complete.
    """
    receipts = []
    for name in names:
        receipt = run.receipt(name)
        if receipt is None:
            raise StageError(f"stage {stage} needs {name}, which is not complete in {run.folder.url}; run it first")
        run.demand_whole(receipt)
        receipts.append(receipt)
    return receipts


def begin_stage(run: Run, stage: str, settings: dict[str, Any], receipts: Sequence[Receipt]) -> StartedStage:
    """Starts a stage, goes on with it, or finds its receipt.

    Raises:
        ChangedInputs: it was begun with other settings or on other rows.
    """
    inputs = {**settings, "reads": {receipt.stage: receipt_key(receipt) for receipt in receipts}}
    done = run.begin(stage, inputs, renewed_inputs)
    return StartedStage(stage, inputs, done, run.receipt(stage))


def finish_stage(run: Run, started: StartedStage, parts: Sequence[str], num_rows: int, num_failures: int) -> Receipt:
    """Writes the receipt: the stage is complete."""
    receipt = Receipt(
        stage=started.stage,
        inputs=started.inputs,
        parts=sorted(parts),
        num_rows=num_rows,
        num_failures=num_failures,
        seconds=round(time.monotonic() - started.started_s, 3),
        started=started.started.isoformat(timespec="seconds"),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        files=run.files_of(started.stage, parts),
    )
    run.finish(receipt)
    return receipt


def run_sharded(
    run: Run,
    started: StartedStage,
    parts: Sequence[str],
    num_images: int,
    operators: Sequence[Operator],
    max_failures: float = 1.0,
) -> Receipt:
    """Sends every part that is not there yet through the operators, shows how far it is, and writes the receipt.

    Args:
        run: the run folder.
        started: from `begin_stage`, without a receipt.
        parts: names of all parts of the stage; the same as those of the stage it reads.
        num_images: images in all parts.
        operators: the last one writes its part and returns `fmwsss.cluster.execution.rows.summary`.
        max_failures: share of the images that may fail; more end the stage at once.

    Raises:
        StageError: every image failed, or too many did; the message counts the kinds of errors.
    """
    stage = started.stage
    pending = [part for part in parts if part not in started.done_parts]
    finished = [part for part in parts if part in started.done_parts]
    num_rows = run.count_rows(stage, finished)
    num_failures = run.failures(stage).num_rows if finished else 0
    allowed = math.floor(max_failures * num_images + 1e-9)
    timings: list[dict[str, Any]] = []
    noted_s = time.monotonic()

    def check_failures() -> None:
        if num_failures > allowed:
            raise StageError(
                f"stage {stage}: {num_failures} of {num_images} images failed, max_failures allows {allowed}: "
                f"{failure_summary(run, stage)}. `fmwsss failures {run.folder.url}` lists them, with --retry it tries "
                "them again; or raise max_failures"
            )

    check_failures()
    with StageProgress(stage, num_images, "images", done=num_rows + num_failures) as progress:

        def on_done(row: dict[str, Any]) -> None:
            nonlocal num_rows, num_failures, noted_s
            file = StageFile(row["file"], row["num_rows"], row["num_bytes"], row["sha256"])
            run.accept(stage, row["part"], file)
            if time.monotonic() - noted_s > JOURNAL_EVERY_S:
                run.write_journal(stage)
                noted_s = time.monotonic()
            num_rows += row["num_rows"]
            num_failures += row["num_failures"]
            progress.advance(row["num_rows"] + row["num_failures"], row["num_failures"])
            check_failures()

        shards = [{"part": part} for part in pending]
        map_shards(shards, operators, on_done, stage=stage, on_timings=timings.extend)
    if num_failures and not num_rows:
        raise StageError(f"stage {stage}: all {num_failures} images failed: {failure_summary(run, stage)}")
    receipt = finish_stage(run, started, parts, num_rows, num_failures)
    run.add_timeline(timings)
    return receipt


def failure_summary(run: Run, stage: str) -> str:
    """Failures of a stage by kind, most frequent first, each with one example."""
    failures = run.failures(stage).to_pylist()
    kinds = Counter(failure["error_type"] for failure in failures)
    example = {failure["error_type"]: failure for failure in reversed(failures)}
    return "; ".join(
        f"{count} {kind} (such as {example[kind]['image_id']}: {example[kind]['message']})"
        for kind, count in kinds.most_common()
    )
