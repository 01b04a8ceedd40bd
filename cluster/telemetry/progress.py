"""How far a stage is: a bar on a terminal, a plain line every few seconds in a log, figures for Prometheus."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import ray
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0
POLL_EVERY_S = 0.5

_shown: list[StageProgress] = []


def running() -> dict[str, Any] | None:
    """How far the stage that this process drives right now is, as JSON; None between stages."""
    return _shown[-1].snapshot() if _shown else None


@functools.cache
def _measures() -> tuple[metrics.Gauge, metrics.Gauge, metrics.Counter]:
    tags = ("stage",)
    return (
        metrics.Gauge("fmwsss_stage_done", "units of a stage that are finished", tags),
        metrics.Gauge("fmwsss_stage_total", "units of a stage", tags),
        metrics.Counter("fmwsss_failures", "images that failed in a stage", tags),
    )


class StageProgress:
    """Counts of one stage, shown as they grow. Use as `with StageProgress(...) as progress: progress.advance(3)`.

    Args:
        stage: name shown.
        total: how many units the whole stage has.
        unit: what is counted, in the plural.
        done: units an earlier start has already finished.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self.num_failures = 0
        self._resumed = done
        self._started_s = time.monotonic()
        self._last_line_s = self._started_s
        self._note = ""
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:22}"), BarColumn(40), MofNCompleteColumn(), TextColumn(unit),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(stage, total=total, completed=done, note="")

    def advance(self, count: int, num_failures: int = 0, note: str = "") -> None:
        """Adds finished units; `note` is a few words such as the current loss.

        Args:
            count: units finished since the last call.
            num_failures: of images among them.
            note: shown beside the bar.
        """
        self.done += count
        self.num_failures += num_failures
        if note:
            self._note = note
        self._measure(num_failures)
        if self._bar:
            failed = f"{self.num_failures} failed " if self.num_failures else ""
            self._bar.update(self._task, completed=self.done, note=failed + self._note)
        elif self.done < self.total and time.monotonic() - self._last_line_s > LINE_EVERY_S:
            self._print_line()

    def snapshot(self) -> dict[str, Any]:
        """The counts of this moment."""
        return {
            "stage": self.stage,
            "unit": self.unit,
            "total": self.total,
            "done": self.done,
            "resumed": self._resumed,
            "failed": self.num_failures,
            "seconds": round(time.monotonic() - self._started_s, 1),
            "note": self._note,
        }

    def _measure(self, num_failures: int) -> None:
        if not ray.is_initialized():
            return
        done, total, failures = _measures()
        done.set(self.done, {"stage": self.stage})
        total.set(self.total, {"stage": self.stage})
        if num_failures:
            failures.inc(num_failures, {"stage": self.stage})

    def __enter__(self) -> StageProgress:
        _shown.append(self)
        self._measure(0)
        if self._bar:
            self._bar.start()
        elif self._resumed:
            print(f"{self.stage}: {self._resumed} of {self.total} {self.unit} were there already", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _shown.remove(self)
        if self._bar:
            self._bar.stop()
        elif error is None:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line_s = time.monotonic()
        seconds = self._last_line_s - self._started_s
        fresh = self.done - self._resumed
        left = (
            f", {seconds / fresh * (self.total - self.done):.0f} s left" if 0 < self.done < self.total and fresh else ""
        )
        failed = f", {self.num_failures} failed" if self.num_failures else ""
        note = f", {self._note}" if self._note else ""
        print(f"{self.stage}: {self.done} of {self.total} {self.unit}, {seconds:.1f} s{left}{failed}{note}", flush=True)


@ray.remote(num_cpus=0)
class Board:
    """A small actor that workers of a Ray Train job write their progress on; the driver reads it."""

    def __init__(self) -> None:
        self.state = (0, "")

    def set(self, done: int, note: str) -> None:
        """What is finished by now, and a few words about it.

        Args:
            done: units finished by now.
            note: a few words.
        """
        self.state = (done, note)

    def get(self) -> tuple[int, str]:
        """What was set last."""
        return self.state


@contextlib.contextmanager
def watch_board(progress: StageProgress) -> Iterator[Any]:
    """A board whose state is shown as the progress of a stage for as long as the block runs."""
    # Where the driver is: a node that the run can lose must not take the board with it.
    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = Board.options(scheduling_strategy=beside).remote()
    ended = threading.Event()

    def show() -> None:
        done, note = ray.get(board.get.remote())
        progress.advance(max(0, done - progress.done), note=note)

    def poll() -> None:
        while not ended.wait(POLL_EVERY_S):
            show()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
        ended.set()
        thread.join()
        show()
    finally:
        ended.set()
        thread.join()
        ray.kill(board)
