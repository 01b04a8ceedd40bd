"""What a run has cost: GPU hours and money of the machines that were there for it, counted while its driver works.

<run>/spending/<start>.json   what one start of a driver has spent until now
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.errors import FmwsssError

SPENDING = "spending"
GROUP_LABEL, GPU_LABEL = "ray.io/node-group", "ray.io/accelerator-type"
GPU_RESOURCE = "accelerator_type:"


class BudgetError(FmwsssError):
    """A run that has spent what it may; the line tells what was spent and how to go on."""

    exit_code = 3


@dataclass(frozen=True)
class Prices:
    """What an hour costs.

    Attributes:
        currency: for the reader.
        gpu_hour: of one GPU with its share of the machine, by Ray's name of the GPU, such as A10G.
        machine_hour: of one machine, by its group in the cluster's file or by `cpu` for those without a GPU. Goes
            before the price of its GPUs.
    """

    currency: str = ""
    gpu_hour: Mapping[str, float] = field(default_factory=dict)
    machine_hour: Mapping[str, float] = field(default_factory=dict)

    @property
    def are_known(self) -> bool:
        """Whether there are any."""
        return bool(self.gpu_hour or self.machine_hour)


@dataclass(frozen=True)
class Amount:
    """GPU hours and money.

    Attributes:
        gpu_hours: of all GPUs that were there, at work or not: they are paid for.
        cost: in the currency of the prices; of machines without a price nothing.
        hours: wall time of drivers.
    """

    gpu_hours: float = 0.0
    cost: float = 0.0
    hours: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.gpu_hours + other.gpu_hours, self.cost + other.cost, self.hours + other.hours)


@dataclass(frozen=True)
class Budget:
    """What a run may spend in its whole life; None sets no limit.

    Attributes:
        max_gpu_hours: of all its starts.
        max_cost: of all its starts, in the currency of the prices.
    """

    max_gpu_hours: float | None = None
    max_cost: float | None = None

    def is_spent(self, spent: Amount) -> bool:
        """Whether nothing is left of one of the limits."""
        return any(
            limit is not None and amount >= limit
            for limit, amount in ((self.max_gpu_hours, spent.gpu_hours), (self.max_cost, spent.cost))
        )


def gpus_of(node: Mapping[str, Any]) -> tuple[str | None, float]:
    """Kind and number of a machine's GPUs.

    Args:
        node: of `ray.nodes()`.

    Returns:
        Ray's name of the kind, None where it has none, and how many there are.
    """
    resources = node["Resources"]
    named = (name.removeprefix(GPU_RESOURCE) for name in resources if name.startswith(GPU_RESOURCE))
    return node.get("Labels", {}).get(GPU_LABEL) or next(named, None), resources.get("GPU", 0.0)


def price_of(node: Mapping[str, Any], prices: Prices) -> float | None:
    """Price of an hour of a machine.

    Args:
        node: of `ray.nodes()`.
        prices: of the run file.

    Returns:
        None where it has no price.
    """
    kind, num_gpus = gpus_of(node)
    group = node.get("Labels", {}).get(GROUP_LABEL, "")
    if group in prices.machine_hour:
        return prices.machine_hour[group]
    if num_gpus:
        return num_gpus * prices.gpu_hour[kind] if kind and kind in prices.gpu_hour else None
    return prices.machine_hour.get("cpu")


def spent_in_an_hour(nodes: Sequence[Mapping[str, Any]], prices: Prices) -> Amount:
    """What an hour of these machines takes.

    Args:
        nodes: of `ray.nodes()`; dead ones cost nothing.
        prices: of the run file.
    """
    alive = [node for node in nodes if node["Alive"]]
    return Amount(
        gpu_hours=sum(gpus_of(node)[1] for node in alive),
        cost=sum(price_of(node, prices) or 0.0 for node in alive),
        hours=1.0,
    )


def spent_by(folder: Folder) -> Amount:
    """What all starts of a run's drivers have spent.

    Args:
        folder: of the run.
    """
    total = Amount()
    for name in folder.list(f"{SPENDING}/"):
        # Written by a hand, or half there: a run is not refused for it.
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            total += Amount(**json.loads(folder.read(name)))
    return total


def told_spent(spent: Amount, budget: Budget, currency: str) -> str:
    """One line: what was spent of which limits, and how to go on.

    Args:
        spent: by all starts.
        budget: of which one limit at least is reached.
        currency: of the prices.
    """
    parts, raised = [], []
    if budget.max_gpu_hours is not None:
        parts.append(f"{spent.gpu_hours:.3g} of {budget.max_gpu_hours:g} GPU hours")
        if spent.gpu_hours >= budget.max_gpu_hours:
            raised.append("max_gpu_hours")
    if budget.max_cost is not None:
        parts.append(f"{spent.cost:.3g} of {budget.max_cost:g} {currency}".rstrip())
        if spent.cost >= budget.max_cost:
            raised.append("max_cost")
    return (
        f"the budget is spent: {', '.join(parts)}; what is written stays. The same command with a higher "
        f"{' and '.join(raised)} goes on from here"
    )
