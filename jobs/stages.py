"""What a stage of a run is, declared once beside its code, and how any stage is made.

A stage reads folders of the run, writes one folder of its own, and is complete when its receipt is there. Its
declaration is all that the rest of the program knows of it: the order of a run, the commands, `--from` and `--only`,
plan, status, failures, receipts and the report ask it (docs/architecture.md shows how a stage is added).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
from fmwsss.cluster.storage.ledger import INPUTS, Receipt, Run
from fmwsss.cluster.storage.receipts import StageFile
from fmwsss.cluster.telemetry.progress import StageProgress
from fmwsss.core.errors import InputError
from fmwsss.jobs.config.renewal import FIRST_VERSION, METHOD_VERSION, renewed_inputs
from fmwsss.jobs.config.run import RunConfig

VERSIONS_OF = ("fmwsss", "ray", "torch", "open_clip_torch", "segment-anything", "pyarrow", "numpy", "pillow")


JOURNAL_EVERY_S = 10.0  # parts that a killed driver did not note are read again by the next one


class StageError(InputError):
    """A stage that cannot start, or whose images all failed; the message says what to do."""


@dataclass(frozen=True)
class ShardCost:
    """What `fmwsss plan` cannot measure of a stage whose images it sends through its operators.

    Attributes:
        replica: the operator that holds a network: what it takes is GPU time where there are GPUs.
        requests_per_image: to the storage, beside the one of a PNG.
        requests_per_part: to the storage.
    """

    replica: type | None = None
    requests_per_image: int = 0
    requests_per_part: int = 8


@dataclass(frozen=True)
class StepCost:
    """How `fmwsss plan` measures a stage of iterations: by one step on a worker, and the stages after it without it.

    Attributes:
        step: the function of `fmwsss.jobs.commands.plan_timing` that tells the seconds of one step.
        arguments: of that function, before a worker's share of the batch and its threads; small and picklable.
        num_steps: how many there are, by number of images; no step costs nothing.
        batch_size: images of a step, of all workers together.
        stand_in: the function of `plan_timing` that writes what the stage would have learned, untrained; called with
            `arguments` and the stage's folder. Without one the stages after it are not measured.
        renewed: a stage that is made anew on the way, the folder that it goes to, and after how many steps each time.
    """

    step: str
    arguments: tuple[Any, ...]
    num_steps: Callable[[int], int]
    batch_size: int
    stand_in: str | None = None
    renewed: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Judged:
    """What a stage makes that the report compares with the ground truth: one row of `metrics.json`.

    Attributes:
        name: of the row.
        column: of the stage's table: label maps, or class maps where there is a `background_power`. Or a ceiling, which
            the ground truth has a part in: `named` (superpixels), `cut` (class maps).
        background_power: exponent of the background score that class maps are cut with (docs/method.md, M5.2).
        maps: for `cut`, the column of the class maps.
        source: of class maps, for the table.
        without: stages that the stage reads and this column does not need; their time is not counted.
    """

    name: str
    column: str
    background_power: float | None = None
    maps: str | None = None
    source: str | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as the run file asks for it. One of `operators`, `make` and `report` says how it runs.

    Attributes:
        name: its folder in the run, and its name in every command, option and message. A stage of predictions, which
            are a run in the run, is called `predictions/NAME/STAGE`.
        unit: what its progress and its receipt count. None: it looks at what the others made and has no receipt.
        reads: the stages that must be complete before it, by name; a change of them is a change of this one. The parts
            and images of the first are its own, where it has `operators`.
        settings: what of the run file its rows depend on, as JSON: another value is refused, by name. Only called when
            the stage is due, so it may read files.
        method_version: of the stage's code, an input like its settings. To be raised in the commit by which the same
            settings begin to give other rows: a run that was begun before is then refused, by name, and not mixed.
        operators: the chain that every shard goes through, for the run folder.
        make: all that the stage does, from `begin_stage` to its receipt, which it returns.
        report: for a stage without receipt, called with the run folder and all stages of the run.
        check: told how many images there are as soon as they are counted, before any other stage is paid for; returns
            what will be done, in words, or raises what is wrong.
        cost: for `fmwsss plan`; None where it is not planned.
        judged: what the report compares with the ground truth.
        refresh: called before any stage is made, with the stage, the run folder, all stages, and whether prompts are to
            be learned anew: compares what the stage was made from with what is there now, and has made again what
            depends on a difference.
        of_pixels: whether of an image it depends on the pixels alone, and not on its labels.
    """

    name: str
    unit: Literal["images", "iterations"] | None
    reads: tuple[str, ...]
    settings: Callable[[], dict[str, Any]] = dict
    method_version: int = FIRST_VERSION
    operators: Callable[[Run], Sequence[Operator]] | None = None
    make: Callable[[Stage, Run], Receipt] | None = None
    report: Callable[[Run, Sequence[Stage]], Any] | None = None
    check: Callable[[int], str] | None = None
    cost: ShardCost | StepCost | None = ShardCost()
    judged: tuple[Judged, ...] = ()
    refresh: Callable[[Stage, Run, Sequence[Stage], bool], None] | None = None
    of_pixels: bool = False

    def inputs(self) -> dict[str, Any]:
        """What its rows depend on, beside the stages that it reads."""
        return {**self.settings(), METHOD_VERSION: self.method_version}


@dataclass(frozen=True)
class Declaration:
    """The stages of one name; each module with stages has a tuple DECLARATIONS of them.

    Attributes:
        name: the command, and the value of `--from` and `--only`: of one stage, or of the folder of several.
        about: one line for `fmwsss --help`.
        stages: the stages that a run file asks for; none where it does not ask.
        old_names: what it was called before; understood, with a line that tells the new name.
    """

    name: str
    about: str
    stages: Callable[[RunConfig], Sequence[Stage]]
    old_names: tuple[str, ...] = ()


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
