"""Shards through Ray Data: one block per shard, crashes bounded, errors in one line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray import cloudpickle

from fmwsss.cluster.execution import heartbeat as pulse
from fmwsss.cluster.execution import shard_pipeline as shard_room
from fmwsss.cluster.execution.resources import ResourceError, plan_replicas
from fmwsss.cluster.execution.rows import map_rows, start_rows
from fmwsss.cluster.execution.shard_pipeline import NUM_RETRIES, Operator, ShardError, map_shards, stream_shards
from fmwsss.cluster.storage.folder import StorageError
from fmwsss.core.errors import InputError, UnexpectedError

# The workers can't import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Logical GPUs: placement is real, the devices are not.
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def shards(count: int) -> list[dict]:
    return [{"part": f"part-{index:05d}", "first": 10 * index, "num": index % 4} for index in range(count)]


def enumerate_shard(block: pa.Table, row_bytes: int = 1) -> pa.Table:
    (shard,) = block.to_pylist()
    values = [shard["first"] + offset for offset in range(shard["num"])]
    payload = [b"x" * row_bytes] * len(values)
    return pa.table(
        {"part": [shard["part"]] * len(values) or [shard["part"]], "value": values or [0], "payload": payload or [b""]}
    )


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, block: pa.Table) -> pa.Table:
        values = [value + self.amount for value in block["value"].to_pylist()]
        return pa.table({"part": block["part"], "value": values})


def total(block: pa.Table) -> pa.Table:
    return pa.table({"part": block["part"][:1], "total": [sum(block["value"].to_pylist())], "rows": [block.num_rows]})


def chain(**arguments: object) -> list[Operator]:
    return [
        Operator(enumerate_shard, arguments, num_cpus=0.5),
        Operator(Adder, {"amount": 100}, num_cpus=0.5, num_gpus=1, num_replicas=2),
        Operator(total, num_cpus=0.5),
    ]


def test_a_block_is_a_shard_through_functions_and_actors() -> None:
    rows: list[dict] = []
    map_shards(shards(40), chain(), rows.append)
    assert [row["part"] for row in sorted(rows, key=lambda row: row["part"])] == [shard["part"] for shard in shards(40)]
    for row in rows:
        index = int(row["part"][-5:])
        num = index % 4
        expected = sum(10 * index + offset + 100 for offset in range(num)) if num else 100
        assert (row["total"], row["rows"]) == (expected, max(num, 1))


def test_a_large_shard_is_not_cut() -> None:
    rows: list[dict] = []
    map_shards([{"part": "big", "first": 0, "num": 6}], chain(row_bytes=50_000_000), rows.append)
    assert [row["rows"] for row in rows] == [6]


def test_rows_arrive_while_others_are_still_at_work(tmp_path: Path) -> None:
    arrived: list[str] = []

    def on_done(row: dict) -> None:
        arrived.append(row["part"])
        (tmp_path / row["part"]).touch()

    # Each shard waits until the driver has heard of the one before it.
    map_shards([{"part": str(index)} for index in range(3)], [Operator(wait_for, {"folder": str(tmp_path)})], on_done)
    assert arrived == ["0", "1", "2"]


def wait_for(block: pa.Table, folder: str) -> pa.Table:
    index = int(block["part"][0].as_py())
    deadline = time.monotonic() + 60
    while index and not os.path.exists(f"{folder}/{index - 1}"):
        assert time.monotonic() < deadline, "the driver does not hear of a shard before the next one ends"
        time.sleep(0.05)
    return block.select(["part"])


@pytest.mark.long
def test_a_shard_that_always_kills_its_worker_ends_in_one_line_and_the_others_are_done(tmp_path: Path) -> None:
    for operator in (
        Operator(crash_function, {"folder": str(tmp_path)}),
        Operator(Crasher, {"folder": str(tmp_path)}, num_replicas=2),
        Operator(Crasher, {"folder": str(tmp_path)}, num_replicas=1),  # another shard waits behind it
    ):
        for trace in tmp_path.iterdir():
            trace.unlink()
        rows: list[dict] = []
        with pytest.raises(ShardError, match=r"^not done: part-00003: a worker died \d+ times") as caught:
            map_shards(shards(12), [operator], rows.append)
        assert len(str(caught.value).splitlines()) == 1
        assert len(rows) == 11
        # Twice as often where another shard was waiting at the actor.
        assert 1 <= len(list(tmp_path.iterdir())) <= 2 * (NUM_RETRIES + 1)


def crash_function(block: pa.Table, folder: str) -> pa.Table:
    if block["part"][0].as_py() == "part-00003":
        Path(folder, str(time.time_ns())).touch()
        os._exit(1)
    return block.select(["part"])


class Crasher:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, block: pa.Table) -> pa.Table:
        if block["part"][0].as_py() == "part-00003":
            time.sleep(0.5)  # long enough for the next shard to wait behind it
        return crash_function(block, self.folder)


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    rows: list[dict] = []
    map_shards(shards(12), [Operator(CrashOnce, {"folder": str(tmp_path)}, num_replicas=2)], rows.append)
    assert len(rows) == 12
    assert len({row["part"] for row in rows}) == 12
    assert (tmp_path / "crashed").exists()


class CrashOnce:
    def __init__(self, folder: str) -> None:
        self.flag = Path(folder, "crashed")

    def __call__(self, block: pa.Table) -> pa.Table:
        if block["part"][0].as_py() == "part-00003" and not self.flag.exists():
            self.flag.touch()
            os._exit(1)
        return block.select(["part"])


class Broken:
    def __init__(self) -> None:
        raise InputError("no such weights")

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def test_an_actor_that_cannot_start_is_an_error() -> None:
    with pytest.raises(ShardError, match=r"^not done: part-0000\d.*: no such weights$") as caught:
        map_shards(shards(30), [*chain()[:1], Operator(Broken), Operator(total)], lambda row: None)
    assert "Traceback" in str(caught.value.__cause__)


def fail_on_some(block: pa.Table, bad: list[int]) -> pa.Table:
    if int(block["part"][0].as_py()[-5:]) in bad:
        raise KeyError("a mistake\nof ours")
    return block.select(["part"])


def test_an_exception_is_one_line_and_the_other_shards_are_done() -> None:
    rows: list[dict] = []
    with pytest.raises(
        UnexpectedError, match=r"^not done: part-00002, part-00007: KeyError: .*mistake.*of ours"
    ) as caught:
        map_shards(shards(12), [Operator(fail_on_some, {"bad": [2, 7]})], rows.append)
    assert len(rows) == 10
    assert len(str(caught.value).splitlines()) == 1


def test_many_exceptions_end_the_job_early() -> None:
    rows: list[dict] = []
    with pytest.raises(UnexpectedError, match=r"^not done: "):
        map_shards(shards(200), [Operator(fail_on_some, {"bad": list(range(200))})], rows.append)
    assert rows == []


def refuse(block: pa.Table) -> pa.Table:
    raise StorageError("can't write s3://somewhere/x: access is refused")


def test_the_reason_of_the_storage_arrives_as_it_was_said() -> None:
    with pytest.raises(StorageError, match=r"^can't write s3://somewhere/x: access is refused$"):
        map_shards(shards(3), [Operator(refuse), Operator(total)], lambda row: None)


def test_resources_that_never_come_are_an_error() -> None:
    with pytest.raises(ShardError, match="no image finished within 5 s; pending"):
        map_shards(shards(3), [Operator(Adder, {"amount": 1}, num_gpus=7)], lambda row: None, no_progress_timeout_s=5)


class Sleeper:
    """Sleeps over every image; says that one is finished as often as it is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, block: pa.Table) -> pa.Table:
        pulse.BEAT_S = 0.1
        images = start_rows(block["part"][0].as_py(), [{"image_id": str(index)} for index in range(5)], [])
        map_rows(images, lambda row: time.sleep(self.seconds) or {}, [], "sleep")
        return block


def test_a_shard_may_take_long_and_an_image_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.5)
    rows: list[dict[str, Any]] = []
    map_shards(shards(1), [Operator(Sleeper, {"seconds": 2.0})], rows.append, no_progress_timeout_s=6)
    assert [row["part"] for row in rows] == ["part-00000"]
    with pytest.raises(ShardError, match="no image finished within 6 s"):
        map_shards(shards(1), [Operator(Sleeper, {"seconds": 30.0})], rows.append, no_progress_timeout_s=6)


def test_replicas_follow_the_gpus_that_are_there_or_may_come() -> None:
    assert plan_replicas(None, None, 2).num_replicas == 2
    halves = plan_replicas(None, 0.5, 2)
    assert (halves.num_replicas, halves.num_gpus) == (4, 0.5)
    assert plan_replicas(None, None, 2, max_gpus=16).num_replicas == 16
    with pytest.raises(ResourceError, match=r"5 replicas with 0\.5 GPU each were asked for; the cluster has 2 GPU"):
        plan_replicas(5, 0.5, 2)
    without = plan_replicas(None, 0, 2)
    assert (without.num_replicas, without.num_gpus) == (2, 0)


def count_rounds(kind: type, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each round of Ray Data's loop began, from now on."""
    rounds, step = [], kind.on_execution_step

    def counted(self: Any, executor: Any) -> None:
        rounds.append(time.monotonic())
        step(self, executor)

    monkeypatch.setattr(kind, "on_execution_step", counted)
    return rounds


def slow(block: pa.Table) -> pa.Table:
    time.sleep(4)
    return enumerate_shard(block)


def test_finished_shards_are_looked_for_the_less_often_the_longer_there_was_none(monkeypatch: pytest.MonkeyPatch):
    rounds, rows = count_rounds(shard_room._Rest, monkeypatch), []
    map_shards(shards(1), [Operator(slow), Operator(total)], rows.append)
    assert len(rows) == 1
    # Without a rest a hundred a second.
    assert 1 <= len([moment for moment in rounds if rounds[-1] - 4 < moment]) < 200


def many_tables(block: pa.Table) -> Iterator[pa.Table]:
    for number in range(20):
        time.sleep(0.05)
        yield pa.table({"part": block["part"], "number": [number], "data": [bytes(1 << 20)]})


def test_a_stream_keeps_its_order_and_leaves_time_to_who_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data's loop runs in the reader's process, and would never rest while its tasks wait for the reader."""
    rounds, rows = count_rounds(shard_room._Pause, monkeypatch), []
    for table in stream_shards(shards(6), many_tables, {}, batch_rows=5, num_tasks=2):
        rows += table.select(["part", "number"]).to_pylist()
    assert rows == [{"part": shard["part"], "number": number} for shard in shards(6) for number in range(20)]
    assert 1 <= len(rounds) <= 1 + (rounds[-1] - rounds[0]) / shard_room.STREAM_PAUSE_S


def picked_device() -> str:
    import torch

    from fmwsss.cluster.models.device import pick_device

    torch.cuda.is_available = lambda: True
    return pick_device()


def test_a_worker_that_was_given_no_gpu_takes_none_though_the_machine_has_one() -> None:
    devices = [ray.remote(picked_device).options(num_gpus=share).remote() for share in (0, 0.5)]
    assert ray.get(devices) == ["cpu", "cuda"]


def test_nothing_to_do() -> None:
    map_shards([], chain(), lambda row: pytest.fail("there was no shard"))
