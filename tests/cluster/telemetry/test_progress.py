"""Figures for Prometheus: what Ray's own exporter shows of a stage, and that the dashboard asks for nothing else."""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray import cloudpickle

from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
from fmwsss.cluster.telemetry import progress as progress_room
from fmwsss.cluster.telemetry.progress import Course, StageProgress, on_course, running
from tests.support.ray_heads import free_port

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def metrics_url() -> Iterator[str]:
    port = free_port()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


def copy(block: pa.Table) -> pa.Table:
    return pa.table({"part": [block["part"][0].as_py()] * 5})


def count(block: pa.Table) -> pa.Table:
    time.sleep(0.01)
    return pa.table({"part": block["part"][:1]})


def test_rows_seconds_and_failures_are_exported(metrics_url: str) -> None:
    events: list[dict] = []
    assert running() is None
    with StageProgress("superpixels", 20, "images", done=8) as progress:
        shards = [{"part": f"part-{index:05d}"} for index in range(4)]
        map_shards(shards, [Operator(copy, num_cpus=0.5), Operator(count, num_cpus=0.5)],
                   lambda row: progress.advance(2, 1), stage="superpixels", on_timings=events.extend)  # fmt: skip
        state = running()
        assert state
        del state["seconds"]
        assert state == {"stage": "superpixels", "unit": "images", "total": 20, "done": 16, "resumed": 8, "failed": 4,
                         "note": ""}  # fmt: skip
    assert running() is None
    assert sorted((event["name"], event["args"]["part"]) for event in events) == sorted(
        (name, shard["part"]) for name in ("copy", "count") for shard in shards
    )
    assert all(event["dur"] >= 10_000 for event in events if event["name"] == "count")
    expected = {
        r'fmwsss_rows_total\{[^}]*operator="copy"[^}]*stage="superpixels"[^}]*\} (\S+)': 4,
        r'fmwsss_rows_total\{[^}]*operator="count"[^}]*stage="superpixels"[^}]*\} (\S+)': 20,
        r'fmwsss_failures_total\{[^}]*stage="superpixels"[^}]*\} (\S+)': 4,
        r'fmwsss_stage_done\{[^}]*stage="superpixels"[^}]*\} (\S+)': 16,
        r'fmwsss_stage_total\{[^}]*stage="superpixels"[^}]*\} (\S+)': 20,
    }
    asked = set(re.findall(r"ray_(?:fmwsss|data)_\w+", (ROOT / "grafana.json").read_text()))
    assert len(asked) == 7
    deadline = time.monotonic() + 60
    while True:
        text = urllib.request.urlopen(metrics_url, timeout=10).read().decode()
        found = {pattern: sum(map(float, re.findall(pattern, text))) for pattern in expected}
        exported = set(re.findall(r"ray_(?:fmwsss|data)_\w+", text))
        if found == expected and asked <= exported:
            break
        assert time.monotonic() < deadline, (found, asked - exported)
        time.sleep(1)
    busy = re.findall(r'fmwsss_busy_seconds_total\{[^}]*operator="count"[^}]*\} (\S+)', text)
    assert 0.04 <= sum(map(float, busy)) < 20


def test_lines_tell_the_place_among_the_stages_and_come_without_news(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_room, "LINE_EVERY_S", 0.2)
    course = Course(["images", "seeds/coarse", "seeds/fine", "reports"], {"reports": 0.0})
    with on_course(course):
        course.begin("seeds/coarse")
        with StageProgress("seeds/coarse", 8, "images"):
            deadline = time.monotonic() + 60
            told = ""
            while told.count("\n") < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
                told += capsys.readouterr().out
        assert re.match(r"seeds/coarse: 0 of 8 images, \d+\.\d s, stage 2/4\n", told)
        assert course.later_s() is None
        course.learn("seeds/coarse", 30.0)
        assert course.later_s() == 30.0  # fine seeds are taken to take as long as coarse ones
        course.begin("seeds/fine")
        assert course.later_s() == 0.0
