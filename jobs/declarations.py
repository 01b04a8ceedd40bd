"""What a stage of a run is, declared once beside its code.

A stage reads folders of the run, writes one folder of its own, and is complete when its receipt is there. Its
declaration is all that the rest of the program knows of it: the order of a run, the commands, `--from` and `--only`,
plan, status, failures, receipts and the report ask it (docs/architecture.md shows how a stage is added).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.jobs.config.renewal import FIRST_VERSION, METHOD_VERSION
from fmwsss.jobs.config.run import RunConfig


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
