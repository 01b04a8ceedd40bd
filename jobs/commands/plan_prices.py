"""What a planned stage costs, by the prices of the run file and the machines of this moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmwsss.cluster.storage.spending import Amount, Budget, Prices, gpus_of, price_of
from fmwsss.core.errors import InputError

HOURS_A_DAY = 24


@dataclass(frozen=True)
class Tariff:
    """What an hour of a stage is paid with.

    Attributes:
        num_gpus_kept: GPUs that are there whether a stage needs them or not.
        gpu_hour: price of one GPU's hour; None where no price is known.
        other_hour: price of an hour of all machines without a GPU.
    """

    num_gpus_kept: float
    gpu_hour: float | None
    other_hour: float

    def pay(self, hours: float, gpu_hours: float) -> Amount:
        """What a stage takes: its own GPUs where machines come and go, all of them where they stay.

        Args:
            hours: wall time.
            gpu_hours: of its replicas.
        """
        paid = max(gpu_hours, hours * self.num_gpus_kept)
        return Amount(paid, paid * (self.gpu_hour or 0.0) + hours * self.other_hour, hours)


def tariff_of(nodes: Sequence[Mapping[str, Any]], prices: Prices, max_gpus: int | None) -> Tariff:
    """The tariff of a cluster.

    Args:
        nodes: of `ray.nodes()`.
        prices: of the run file.
        max_gpus: GPUs that an autoscaler may bring, and take away again; None: those that are there stay.
    """
    alive = [node for node in nodes if node["Alive"]]
    with_gpus = [node for node in alive if gpus_of(node)[1]]
    num_gpus = sum(gpus_of(node)[1] for node in with_gpus)
    known = [price for node in with_gpus if (price := price_of(node, prices)) is not None]
    # Of machines that are yet to come only the price of a kind of GPU is known: the dearest one.
    gpu_hour = (
        sum(known) / num_gpus if len(known) == len(with_gpus) > 0 else max(prices.gpu_hour.values(), default=None)
    )
    others = sum(price_of(node, prices) or 0.0 for node in alive if node not in with_gpus)
    return Tariff(0.0 if max_gpus else num_gpus, gpu_hour, others)


def demand_budget(total: Amount, spent: Amount, budget: Budget, currency: str) -> str:
    """Whether what is planned is within what a run may still spend, in words.

    Args:
        total: of the whole run.
        spent: by earlier starts.
        budget: of the run file.
        currency: of the prices.

    Raises:
        InputError: it is not; the run would end before its last stage.
    """
    for limit, planned, gone, unit, key in (
        (budget.max_gpu_hours, total.gpu_hours, spent.gpu_hours, "GPU hours", "max_gpu_hours"),
        (budget.max_cost, total.cost, spent.cost, currency, "max_cost"),
    ):
        if limit is not None and planned > limit - gone:
            told = f"a whole run takes about {planned:.3g} {unit}".rstrip()
            raise InputError(f"{told}, and {max(0.0, limit - gone):.3g} of {key} {limit:g} are left; raise {key}")
    return "within max_gpu_hours and max_cost"


def told_hours(hours: float) -> str:
    """A duration in the unit that fits it.

    Args:
        hours: any.

    Returns:
        Such as "under a minute", "12 min", "3.4 h", "2.1 days".
    """
    if hours <= 0:
        return "none"
    if hours < 1 / 60:
        return "under a minute"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 2 * HOURS_A_DAY else f"{hours / HOURS_A_DAY:.1f} days"


def told_cost(cost: float) -> str:
    """Money with two digits after the point, or so many that something is seen."""
    return f"{cost:,.2f}" if cost >= 0.01 or not cost else f"{cost:.1g}"
