"""Trackers of experiments beside TensorBoard: each a small class; the driver alone talks to them.

Workers tell their losses to the driver (`Board`), so that packages and keys of a tracker are needed on one machine. A
tracker that is away never ends a run: it is told once, and left out from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

RUN_TAG = "fmwsss.run"
MAX_PARAMS, MAX_VALUE_CHARS = 100, 500  # of one request to MLflow, and of one value
COMPLETE, FAILED, STOPPED = "complete", "failed", "stopped"

_followers: list[Tracker] = []


class Tracker(Protocol):
    """What a run is told to."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step.

        Args:
            step: iteration; 0 where there are none.
            values: by name, such as `prompts/classification/loss`.
        """

    def finish(self, status: str) -> None:
        """The end of this start of the run.

        Args:
            status: COMPLETE, FAILED or STOPPED.
        """


class MlflowTracker:
    """A run of MLflow, the same one for all starts of a run.

    Args:
        uri: of MLflow's server, or of a store such as `file:/shared/mlruns` or `sqlite:///mlflow.db`.
        experiment: name; made if it is not there.
        run_url: of the run folder.
        settings: of the run file, for the table of parameters.
    """

    def __init__(self, uri: str, experiment: str, run_url: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        self.client = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(experiment)
        where = known.experiment_id if known else self.client.create_experiment(experiment)
        found = self.client.search_runs([where], f"tags.`{RUN_TAG}` = '{run_url}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        name = run_url.rstrip("/").rpartition("/")[2]
        self.run_id = self.client.create_run(where, tags={RUN_TAG: run_url}, run_name=name).info.run_id
        params = iter([Param(key, str(value)[:MAX_VALUE_CHARS]) for key, value in flat(settings).items()])
        while some := list(islice(params, MAX_PARAMS)):
            self.client.log_batch(self.run_id, params=some)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`.

        Args:
            step: iteration.
            values: by name.
        """
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        at_ms = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(name, value, at_ms, step) for name, value in values.items()])

    def finish(self, status: str) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.run_id, {COMPLETE: "FINISHED", FAILED: "FAILED", STOPPED: "KILLED"}[status])


class WandbTracker:
    """A run of Weights & Biases, the same one for all starts of a run; keys and mode come from its own environment.

    Args:
        project: name.
        run_url: of the run folder.
        settings: of the run file.
    """

    def __init__(self, project: str, run_url: str, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._place = tempfile.TemporaryDirectory()
        os.environ.setdefault("WANDB_SILENT", "true")
        self.run = wandb.init(
            project=project,
            id=hashlib.sha256(run_url.encode()).hexdigest()[:12],
            name=run_url.rstrip("/").rpartition("/")[2],
            resume="allow",
            config=flat(settings),
            dir=self._place.name,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`; steps of several stages go back, which wandb's own count does not.

        Args:
            step: iteration.
            values: by name.
        """
        self.run.log({**values, "iteration": step})

    def finish(self, status: str) -> None:
        """See `Tracker`."""
        self.run.finish(exit_code=0 if status == COMPLETE else 1)


@contextlib.contextmanager
def followed_by(make: Sequence[Callable[[], Tracker]]) -> Iterator[None]:
    """For the length of a `with` what `tell_trackers` says goes to these trackers; its end is their end.

    Args:
        make: each makes a tracker.

    """
    _followers.extend(own() for own in make)
    status = FAILED
    try:
        yield
        status = COMPLETE
    except KeyboardInterrupt:
        status = STOPPED
        raise
    finally:
        _to_all(lambda tracker: tracker.finish(status))
        _followers.clear()


def tell_trackers(stage: str, step: int, values: Mapping[str, float]) -> None:
    """Tells every tracker.

    Args:
        stage: goes before the names.
        step: iteration; 0 where there are none.
        values: by name.
    """
    named = {f"{stage}/{name}": float(value) for name, value in values.items()}
    _to_all(lambda tracker: tracker.scalars(step, named))


def _to_all(tell: Callable[[Tracker], None]) -> None:
    for tracker in list(_followers):
        try:
            tell(tracker)
        except Exception as error:
            _followers.remove(tracker)
            line = " ".join(str(error).split())[:300]
            print(f"{type(tracker).__name__} is left out from now on: {type(error).__name__}: {line}", file=sys.stderr)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys.

    Args:
        settings: of a run file.
        before: what goes before each key.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
