"""How far a stage is: a bar on a terminal, a plain line every few seconds in a log, figures for Prometheus."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import ray
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fmwsss.cluster.telemetry.trackers import tell_trackers

LINE_EVERY_S = 10.0
POLL_EVERY_S = 0.5

_shown: list[StageProgress] = []
_course: list[Course] = []


class Course:
    """Which stage of how many a driver is at, and what the later ones will take, as far as that is known.

    Args:
        names: of the stages, in their order.
        seconds: that a stage of each name is known to take; of one that is absent nothing is known.
    """

    def __init__(self, names: Sequence[str], seconds: Mapping[str, float]) -> None:
        self.names, self.seconds = list(names), dict(seconds)
        self.at, self.begun_s = 0, time.monotonic()

    def begin(self, name: str) -> None:
        """Says that a stage begins.

        Args:
            name: of the stage.
        """
        self.at, self.begun_s = self.names.index(name), time.monotonic()

    def learn(self, name: str, seconds: float) -> None:
        """Says what a stage took; others of its kind are taken to take as long: fine seeds as coarse ones.

        Args:
            name: of the stage.
            seconds: wall time.
        """
        self.seconds[name] = seconds
        for other in self.names:
            if other.partition("/")[0] == name.partition("/")[0]:
                self.seconds.setdefault(other, seconds)

    @property
    def place(self) -> str:
        """`3/8`."""
        return f"{self.at + 1}/{len(self.names)}"

    def later_s(self) -> float | None:
        """Seconds of the stages after this one; None where one of them is not known."""
        later = [self.seconds.get(name) for name in self.names[self.at + 1 :]]
        return sum(one for one in later if one is not None) if None not in later else None


@contextlib.contextmanager
def on_course(course: Course) -> Iterator[Course]:
    """For the length of a `with` progress tells its place among the stages, and nothing is silent for long.

    Args:
        course: of the stages that are due.
    """
    spoken_s = time.monotonic()

    def speak() -> None:
        nonlocal spoken_s
        now_s = time.monotonic()
        for own in _shown[-1:]:
            own.speak()
            spoken_s = now_s
        if now_s - max(spoken_s, course.begun_s) > LINE_EVERY_S:
            spoken_s = now_s
            print(f"{course.names[course.at]}: at work, {now_s - course.begun_s:.0f} s", flush=True)

    _course.append(course)
    try:
        with _every(LINE_EVERY_S / 4, speak):
            yield course
    finally:
        _course.remove(course)


@contextlib.contextmanager
def waited_for(what: str) -> Iterator[None]:
    """For the length of a `with` a line tells every ten seconds what is waited for.

    Args:
        what: in a few words.
    """
    begun_s = time.monotonic()
    with _every(LINE_EVERY_S, lambda: print(f"{what}, {time.monotonic() - begun_s:.0f} s", flush=True)):
        yield


@contextlib.contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[whole]}"),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            place = f"{_course[-1].place} " if _course else ""
            self._task = self._bar.add_task(place + stage, total=total, completed=done, note="", whole="")

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
            self._bar.update(self._task, completed=self.done, note=failed + self._note, whole=self._whole())
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

    def speak(self) -> None:
        """A line, if there was none for a while: also where nothing was finished meanwhile."""
        if not self._bar and time.monotonic() - self._last_line_s > LINE_EVERY_S:
            self._print_line()

    def _left_s(self) -> float | None:
        """Seconds until the end of this stage, once something was finished."""
        fresh = self.done - self._resumed
        if not fresh or not 0 < self.done < self.total:
            return None
        return (time.monotonic() - self._started_s) / fresh * (self.total - self.done)

    def _whole(self) -> str:
        """Time until the end of the run, where that of the later stages is known."""
        left_s, later_s = self._left_s(), _course[-1].later_s() if _course else None
        return f"{timedelta(seconds=round(left_s + later_s))} in all" if left_s and later_s else ""

    def _print_line(self) -> None:
        self._last_line_s = time.monotonic()
        seconds, left_s, whole = self._last_line_s - self._started_s, self._left_s(), self._whole()
        parts = [f"{self.done} of {self.total} {self.unit}", f"{seconds:.1f} s"]
        parts += [f"{left_s:.0f} s left"] if left_s is not None else []
        parts += [whole] if whole else []
        parts += [f"{self.num_failures} failed"] if self.num_failures else []
        parts += [self._note] if self._note else []
        parts += [f"stage {_course[-1].place}"] if _course else []
        print(f"{self.stage}: {', '.join(parts)}", flush=True)


@ray.remote(num_cpus=0)
class Board:
    """A small actor that workers of a Ray Train job write their progress on; the driver reads it."""

    def __init__(self) -> None:
        self.done, self.note = 0, ""
        self.values: list[tuple[int, dict[str, float]]] = []

    def set(self, done: int, note: str) -> None:
        """What is finished by now, and a few words about it.

        Args:
            done: units finished by now.
            note: a few words.
        """
        self.done, self.note = done, note

    def tell(self, step: int, values: dict[str, float]) -> None:
        """Values of one step, for trackers.

        Args:
            step: iteration.
            values: by name.
        """
        self.values.append((step, values))

    def get(self) -> tuple[int, str, list[tuple[int, dict[str, float]]]]:
        """What was set last, and what was told since this was asked before."""
        values, self.values = self.values, []
        return self.done, self.note, values


@contextlib.contextmanager
def watch_board(progress: StageProgress) -> Iterator[Any]:
    """A board whose state is shown as the progress of a stage for as long as the block runs."""
    # Where the driver is: a node that the run can lose must not take the board with it.
    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = Board.options(scheduling_strategy=beside).remote()
    ended = threading.Event()

    def show() -> None:
        done, note, values = ray.get(board.get.remote())
        progress.advance(max(0, done - progress.done), note=note)
        for step, named in values:
            tell_trackers(progress.stage, step, named)

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
