"""A budget that is spent ends a run in order: shards at work are written, the others are not begun."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray import cloudpickle

from fmwsss.cluster.execution import meter as meter_room
from fmwsss.cluster.execution.meter import Meter
from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
from fmwsss.cluster.storage.driver_signals import owned_signals
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.spending import Amount, Budget, BudgetError, Prices, spent_by

# The workers can't import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PRICES = Prices("USD", machine_hour={"cpu": 3600.0})  # one a second
NUM_SHARDS = 40


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_room, "LOOK_EVERY_S", 0.2)


class Slow:
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, block: pa.Table) -> pa.Table:
        part = block["part"][0].as_py()
        (self.folder / f"begun-{part}").touch()
        time.sleep(0.5)
        return block


def read(block: pa.Table) -> pa.Table:
    return block


def write(block: pa.Table, folder: str) -> pa.Table:
    (Path(folder) / f"written-{block['part'][0].as_py()}").touch()
    return block.select(["part"])


def shards() -> list[dict[str, str]]:
    return [{"part": f"part-{index:05d}"} for index in range(NUM_SHARDS)]


def operators(folder: Path) -> list[Operator]:
    where = {"folder": str(folder)}
    return [Operator(read, num_cpus=0.2), Operator(Slow, where, num_cpus=0.5, num_replicas=2),
            Operator(write, where, num_cpus=0.2)]  # fmt: skip


def parts(folder: Path, what: str) -> set[str]:
    return {path.name.partition("-")[2] for path in folder.glob(f"{what}-*")}


def test_what_is_begun_is_written_and_the_next_start_does_the_rest(tmp_path: Path) -> None:
    run, done = Folder(str(tmp_path / "run")), []
    work = tmp_path / "work"
    work.mkdir()

    def spend(row: dict) -> None:
        done.append(row["part"])
        if len(done) == 3:
            meter.own += Amount(gpu_hours=1.0)

    meter = Meter(run, PRICES, Budget(max_gpu_hours=1.0))
    told = pytest.raises(BudgetError, match=r"of 1 GPU hours.*a higher max_gpu_hours goes on")
    with told, owned_signals(), meter.counting():
        map_shards(shards(), operators(work), spend)
    assert 3 <= len(done) < NUM_SHARDS
    assert parts(work, "begun") == parts(work, "written") == set(done)
    assert spent_by(run).gpu_hours >= 1.0

    # Before anything is begun: it is spent by the earlier start.
    again = Meter(run, PRICES, Budget(max_gpu_hours=1.0))
    with pytest.raises(BudgetError), again.counting():
        pytest.fail("something was begun")
    # Of the same process, whose job of Ray was asked to end.
    with Meter(run, PRICES, Budget(max_gpu_hours=100.0)).counting():
        map_shards([shard for shard in shards() if shard["part"] not in done], operators(work), lambda row: None)
    assert len(parts(work, "written")) == NUM_SHARDS


def test_what_has_no_shards_is_interrupted(tmp_path: Path) -> None:
    run = Folder(str(tmp_path / "run"))
    told = pytest.raises(BudgetError, match=r"of 1 USD.*a higher max_cost goes on")
    with told, owned_signals(), Meter(run, PRICES, Budget(max_cost=1.0)).counting():
        time.sleep(300)
    assert spent_by(run).cost >= 1.0


def test_another_mistake_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Meter(Folder(str(tmp_path)), PRICES, Budget(max_cost=1e9)).counting():
        raise KeyError
