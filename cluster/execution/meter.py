"""Counts what a run's machines cost while its driver works, and ends the run in order once its budget is spent."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict

import ray
from ray.util import metrics

from fmwsss.cluster.execution import stopping
from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.cluster.storage.spending import (
    SPENDING,
    Amount,
    Budget,
    BudgetError,
    Prices,
    spent_by,
    spent_in_an_hour,
    told_spent,
)

LOOK_EVERY_S = 5.0  # at the machines
WRITE_EVERY_S = 60.0


class Meter:
    """Counts what this start of a driver spends, tells Ray's metrics, and ends the run when its budget is spent.

    Args:
        folder: of the run, guarded.
        prices: of the run file.
        budget: of the run file.
    """

    def __init__(self, folder: Folder, prices: Prices, budget: Budget) -> None:
        self.folder, self.prices, self.budget = folder, prices, budget
        self.before, self.own = spent_by(folder), Amount()
        self._name = f"{SPENDING}/{uuid.uuid4().hex[:12]}.json"
        self._ended = threading.Event()
        self._asked = False
        self._seen_s = self._written_s = time.monotonic()

    @property
    def spent(self) -> Amount:
        """By all starts until now."""
        return self.before + self.own

    def demand(self) -> None:
        """Asked before a stage is begun.

        Raises:
            BudgetError: the budget is spent.
        """
        if self.budget.is_spent(self.spent):
            raise BudgetError(told_spent(self.spent, self.budget, self.prices.currency))

    def look(self) -> None:
        """Adds the time since the last look, at what the machines of this moment cost."""
        now_s = time.monotonic()
        an_hour = spent_in_an_hour(ray.nodes(), self.prices)
        share = (now_s - self._seen_s) / 3600
        self._seen_s = now_s
        self.own += Amount(share * an_hour.gpu_hours, share * an_hour.cost, share)
        _measure(self.spent, self.budget)
        if now_s - self._written_s >= WRITE_EVERY_S:
            self.write()
        if self.budget.is_spent(self.spent) and not self._asked:
            self._asked = True
            stopping.ask_to_stop()

    def write(self) -> None:
        """Writes what this start has spent into the run folder."""
        self._written_s = time.monotonic()
        self.folder.write(self._name, (json.dumps(asdict(self.own), indent=2) + "\n").encode())

    @contextlib.contextmanager
    def counting(self) -> Iterator[Meter]:
        """Counts for the length of a `with`, inside of which Ray is connected.

        Raises:
            BudgetError: the budget is spent, before or meanwhile; what was at work in shards is written.
        """
        self.demand()
        stopping.forget()
        self._seen_s = time.monotonic()
        thread = threading.Thread(target=self._count, daemon=True, name="spending")
        thread.start()
        try:
            yield self
        except BaseException:
            # Of a wait that was cut short Ray makes exceptions of several kinds.
            if self._asked:
                self.demand()
            raise
        finally:
            self._ended.set()
            thread.join()
            # Not worth hiding what went wrong before.
            with contextlib.suppress(StorageError):
                self.write()

    def _count(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            # The store or Ray's head is away for a moment: the time is counted by the next look.
            with contextlib.suppress(Exception):
                self.look()


@functools.cache
def _gauges() -> dict[str, metrics.Gauge]:
    about = {
        "spent_gpu_hours": "GPU hours of the machines that were there for this run",
        "spent_cost": "money of the machines that were there for this run, by the prices of its run file",
        "left_gpu_hours": "GPU hours that are left of max_gpu_hours",
        "left_cost": "money that is left of max_cost",
    }
    return {name: metrics.Gauge(f"fmwsss_{name}", text) for name, text in about.items()}


def _measure(spent: Amount, budget: Budget) -> None:
    gauges = _gauges()
    gauges["spent_gpu_hours"].set(spent.gpu_hours)
    gauges["spent_cost"].set(spent.cost)
    if budget.max_gpu_hours is not None:
        gauges["left_gpu_hours"].set(max(0.0, budget.max_gpu_hours - spent.gpu_hours))
    if budget.max_cost is not None:
        gauges["left_cost"].set(max(0.0, budget.max_cost - spent.cost))
