"""Trackers get what a run tells, the same run at each start; one that is away is no obstacle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray

from fmwsss.cluster.models.spec import ModelError
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.telemetry.progress import StageProgress, watch_board
from fmwsss.cluster.telemetry.tensorboard import EventLog
from fmwsss.cluster.telemetry.trackers import MlflowTracker, WandbTracker, flat, followed_by, tell_trackers
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.steps import trackers_of

SETTINGS = {"run": "runs/a", "propose": {"points_per_side": 32}, "classes": ["cat", "dog"]}


class Listener:
    def __init__(self, breaks_at: int | None = None) -> None:
        self.heard: list[tuple[int, dict[str, float]]] = []
        self.status, self.breaks_at = "", breaks_at

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.breaks_at:
            raise ConnectionError("it is away")
        self.heard.append((step, dict(values)))

    def finish(self, status: str) -> None:
        self.status = status


def test_all_are_told_and_one_that_is_away_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    whole, away = Listener(), Listener(breaks_at=1)
    with followed_by([lambda: whole, lambda: away]):
        for step in range(3):
            tell_trackers("prompts/classification", step, {"loss": step / 2})
    tell_trackers("prompts/classification", 3, {"loss": 0.0})
    assert whole.heard == [(step, {"prompts/classification/loss": step / 2}) for step in range(3)]
    assert (whole.status, away.status, len(away.heard)) == ("complete", "", 1)
    assert capsys.readouterr().err == "Listener is left out from now on: ConnectionError: it is away\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "stopped"), (ValueError, "failed")])
def test_the_end_is_told_as_it_was(error: type[BaseException], status: str) -> None:
    listener = Listener()
    with pytest.raises(error), followed_by([lambda: listener]):
        raise error
    assert listener.status == status


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("local_ray")
def test_what_a_worker_logs_comes_to_the_drivers_trackers(tmp_path: Path) -> None:
    listener = Listener()

    @ray.remote(num_cpus=0)
    def learn(board: object, folder: str) -> None:
        log = EventLog(Folder(folder), 0, 1e9, board.tell.remote)  # type: ignore[attr-defined]
        for step in range(25):
            log.scalars(step, {"loss": step / 4})
        log.save()

    progress = StageProgress("prompts/classification", 25, "iterations")
    with followed_by([lambda: listener]), progress, watch_board(progress) as board:
        ray.get(learn.remote(board, str(tmp_path)))
    assert listener.heard == [(step, {"prompts/classification/loss": step / 4}) for step in range(25)]


def test_a_package_that_is_missing_is_told_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind in ("mlflow", "wandb"):
        config = load_config("demo", [f"tracking.{kind}=anywhere"])
        with pytest.raises(ModelError, match=rf"tracking\.{kind} needs the package {kind}: `pip install .*\[{kind}\]"):
            trackers_of(config, "runs/a", SETTINGS)


def test_settings_are_told_by_dotted_keys() -> None:
    assert flat(SETTINGS) == {"run": "runs/a", "propose.points_per_side": 32, "classes": ["cat", "dog"]}


def test_mlflow_keeps_one_run_over_all_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri, url = f"file:{tmp_path}/mlruns", "s3://bucket/runs/coco"
    many = {**SETTINGS, "many": {f"key{index:03d}": "x" * 900 for index in range(150)}}
    for start in range(2):
        with followed_by([lambda: MlflowTracker(uri, "seeds", url, many)]):
            for step in range(10 * start, 10 * start + 10):
                tell_trackers("prompts/classification", step, {"loss": 1 / (1 + step), "learning_rate": 0.1})
            tell_trackers("miou", 0, {"seeds/fine": 0.5})
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("seeds")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "coco")
    assert run.data.params["propose.points_per_side"] == "32"
    assert sum(key.startswith("many.") for key in run.data.params) == 150
    history = client.get_metric_history(run.info.run_id, "prompts/classification/loss")
    assert sorted((own.step, own.value) for own in history) == [(step, 1 / (1 + step)) for step in range(20)]
    assert run.data.metrics["miou/seeds/fine"] == 0.5


def test_wandb_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    made: list[WandbTracker] = []
    with followed_by([lambda: made.append(WandbTracker("seeds", "runs/a", SETTINGS)) or made[0]]):
        tell_trackers("prompts/classification", 3, {"loss": 0.25})
        assert made[0].run.summary["prompts/classification/loss"] == 0.25
        assert made[0].run.config["propose.points_per_side"] == 32
    assert wandb.run is None
