"""How any stage is made: begun, gone on with or found complete, its shards sent through its operators, its receipt."""

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
from fmwsss.cluster.storage.ledger import INPUTS, Receipt, Run
from fmwsss.cluster.storage.receipts import StageFile
from fmwsss.cluster.telemetry.progress import StageProgress
from fmwsss.core.errors import InputError
from fmwsss.jobs.config.renewal import renewed_inputs
from fmwsss.jobs.declarations import Stage

VERSIONS_OF = ("fmwsss", "ray", "torch", "open_clip_torch", "segment-anything", "pyarrow", "numpy", "pillow")


JOURNAL_EVERY_S = 10.0  # parts that a killed driver did not note are read again by the next one


class StageError(InputError):
    """A stage that cannot start, or whose images all failed; the message says what to do."""


@dataclass
class StartedStage:
    """A stage, by its full name, between its begin and its receipt."""

    stage: str
    inputs: dict[str, Any]
    done_parts: set[str]
    receipt: Receipt | None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    started_s: float = field(default_factory=time.monotonic)


def versions() -> dict[str, str]:
    """Packages that the outputs may depend on; of a checkout that is not installed none is known."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {name: version(name) for name in VERSIONS_OF}


def receipt_key(receipt: Receipt) -> str:
    """Names the content of a complete stage: the same settings on the same images have the same key."""
    # Not the number of rows: images that failed may be tried again (cluster/storage/retry.py has what depends on them
    # made again). What was learned is named by its content: learned again, it may be another.
    learned = {file.name: file.sha256 for file in receipt.files if not file.name.startswith("part-")}
    content = [receipt.inputs, receipt.parts, *([learned] if learned else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def receipt_of(run: Run, stage: str) -> Receipt | None:
    """The receipt of a stage by its full name, or None while it is not complete.

    Args:
        run: the run folder.
        stage: full name, such as `predictions/new/refined`.
    """
    own, local = run.within(stage)
    return own.receipt(local)


def make_stage(
    stage: Stage, run: Run, max_failures: float, stages: Sequence[Stage] = (), advised: str | None = None
) -> Any:
    """Makes a stage, or finds that it is complete.

    Args:
        stage: the stage.
        run: the run folder.
        max_failures: share of the images that may fail.
        stages: all stages of the run, for a report.
        advised: the stage to start again from if the inputs changed; None means this one.

    Returns:
        its receipt; of a report, whatever that returns.

    Raises:
        StageError: a stage that it reads is not complete, or too many images failed.
        ChangedInputs: it was begun with other settings or on other rows.
    """
    if stage.report is not None:
        return stage.report(run, stages)
    if stage.make is not None:
        return stage.make(stage, run)
    assert stage.operators is not None, f"{stage.name} does not say how it runs"
    receipts = upstream(run, stage.name, stage.reads)
    started = begin_stage(run, stage.name, stage.inputs(), receipts, advised)
    if started.receipt:
        return started.receipt
    return run_sharded(run, started, receipts[0].parts, receipts[0].num_rows, stage.operators(run), max_failures)


def demand_unchanged(stages: Sequence[Stage], run: Run) -> None:
    """Refuses, before anything is written, what the begin of one of these stages would refuse.

    Args:
        stages: of the run, those that would be run.
        run: where they were begun, if they were.

    Raises:
        ChangedInputs: one was begun with other settings.
    """
    for stage in stages:
        own, local = run.within(stage.name)
        if not stage.report and own.folder.child(local).exists(INPUTS):
            own.demand_settings(local, stage.inputs(), renewed_inputs, stage.name)


def upstream(run: Run, stage: str, names: Sequence[str]) -> list[Receipt]:
    """The receipts of the stages that this one reads.

    Args:
        run: the run folder.
        stage: that reads them, for the message.
        names: of the stages that are read.

    Returns:
        Receipts in the order of `names`.

    Raises:
        StageError: one of them is not complete.
    """
    receipts = []
    for name in names:
        receipt = receipt_of(run, name)
        if receipt is None:
            raise StageError(f"stage {stage} needs {name}, which is not complete in {run.folder.url}; run it first")
        run.within(name)[0].demand_whole(receipt)
        receipts.append(receipt)
    return receipts


def begin_stage(
    run: Run, stage: str, settings: dict[str, Any], receipts: Sequence[Receipt], advised: str | None = None
) -> StartedStage:
    """Starts a stage, goes on with it, or finds its receipt.

    Args:
        run: the run folder.
        stage: its full name.
        settings: what its rows depend on beside those stages: `Stage.inputs`.
        receipts: of the stages that it reads.
        advised: the stage to start again from if its inputs changed; None means this one.

    Raises:
        ChangedInputs: it was begun with other settings or on other rows.
    """
    inputs = {**settings, "reads": {receipt.stage: receipt_key(receipt) for receipt in receipts}}
    own, local = run.within(stage)
    done = own.begin(local, inputs, renewed_inputs, advised or stage)
    return StartedStage(stage, inputs, done, own.receipt(local))


def finish_stage(run: Run, started: StartedStage, parts: Sequence[str], num_rows: int, num_failures: int) -> Receipt:
    """Writes the receipt: the stage is complete.

    Args:
        run: the run folder.
        started: of `begin_stage`.
        parts: all of the stage.
        num_rows: in them.
        num_failures: of images.

    Returns:
        The receipt.
    """
    own, local = run.within(started.stage)
    receipt = Receipt(
        stage=local,
        inputs=started.inputs,
        parts=sorted(parts),
        num_rows=num_rows,
        num_failures=num_failures,
        seconds=round(time.monotonic() - started.started_s, 3),
        started=started.started.isoformat(timespec="seconds"),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        files=own.files_of(local, parts),
    )
    own.finish(receipt)
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
    own, local = run.within(stage)
    pending = [part for part in parts if part not in started.done_parts]
    finished = [part for part in parts if part in started.done_parts]
    num_rows = own.count_rows(local, finished)
    num_failures = own.failures(local).num_rows if finished else 0
    # One image may always fail, but where a user says 0: 1 % of fifty would be none.
    allowed = max(math.floor(max_failures * num_images + 1e-9), 1 if max_failures else 0)
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
            own.accept(local, row["part"], file)
            if time.monotonic() - noted_s > JOURNAL_EVERY_S:
                own.write_journal(local)
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
    own.add_timeline(local, timings)
    return receipt


def failure_summary(run: Run, stage: str) -> str:
    """Failures of a stage by kind, most frequent first, each with one example.

    Args:
        run: the run folder.
        stage: full name.

    Returns:
        One line.
    """
    own, local = run.within(stage)
    failures = own.failures(local).to_pylist()
    kinds = Counter(failure["error_type"] for failure in failures)
    example = {failure["error_type"]: failure for failure in reversed(failures)}
    return "; ".join(
        f"{count} {kind} (such as {example[kind]['image_id']}: {example[kind]['message']})"
        for kind, count in kinds.most_common()
    )
