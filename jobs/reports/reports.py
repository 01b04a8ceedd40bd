"""Stage `reports`: what was made, judged and shown; made anew each time, from whatever is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmwsss.cluster.storage.ledger import Run, home_of
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, Stage
from fmwsss.jobs.reports import evaluate, gallery

STAGE = "reports"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        metrics: the content of `reports/metrics.json`.
        page: URL of the page; None where there is none.
    """

    metrics: dict[str, Any]
    page: str | None


def _report(config: RunConfig, run: Run, stages: Sequence[Stage]) -> Report:
    own = [stage for stage in stages if not home_of(stage.name)]
    metrics = evaluate.run(config, run, own)
    return Report(metrics, gallery.run(config, run, own))


DECLARATIONS = (
    Declaration(
        STAGE,
        "Judge maps, seeds and predictions, and write the page: reports/metrics.json and reports/index.html.",
        lambda config: [
            Stage(
                name=STAGE,
                unit=None,
                reads=("images", "seeds/coarse", "seeds/fine"),
                report=lambda run, stages: _report(config, run, stages),
                cost=None,
            )
        ],
        old_names=("evaluate", "preview"),
    ),
)


def predictions_stage(config: RunConfig, home: str) -> Stage:
    """The stage that judges what was predicted of one data set, which is a run in the run.

    Args:
        config: the run file, with that data set.
        home: folder of the run in the run, with a slash at its end.
    """

    def report(run: Run, stages: Sequence[Stage]) -> Report:
        own = [stage for stage in stages if home_of(stage.name) == home]
        return Report(evaluate.run_predictions(config, run.within(f"{home}{STAGE}")[0], own), None)

    reads = (f"{home}images", f"{home}predicted")
    return Stage(name=f"{home}{STAGE}", unit=None, reads=reads, report=report, cost=None)
