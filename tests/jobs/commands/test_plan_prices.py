"""What a planned stage costs, in units that a person reads."""

from __future__ import annotations

from typing import Any

import pytest

from fmwsss.cluster.storage.spending import Amount, Budget, Prices
from fmwsss.core.errors import InputError
from fmwsss.jobs.commands.plan_prices import demand_budget, tariff_of, told_cost, told_hours
from fmwsss.jobs.config.load import load_config

HEAD: dict[str, Any] = {"Alive": True, "Labels": {"ray.io/node-group": "head"}, "Resources": {"CPU": 8.0}}
WORKER: dict[str, Any] = {"Alive": True, "Labels": {}, "Resources": {"GPU": 2.0, "accelerator_type:A10G": 1.0}}
PRICES = Prices("USD", {"A10G": 1.0, "L4": 0.5}, {"head": 0.25})


def test_machines_that_come_and_go_are_paid_for_while_they_work() -> None:
    tariff = tariff_of([HEAD], PRICES, max_gpus=16)
    # None is there yet: the dearest kind.
    assert tariff.pay(hours=2.0, gpu_hours=32.0) == Amount(32.0, 32.0 + 0.5, 2.0)
    assert tariff.pay(hours=2.0, gpu_hours=0.0) == Amount(0.0, 0.5, 2.0)


def test_machines_that_stay_are_paid_for_all_the_time() -> None:
    tariff = tariff_of([HEAD, WORKER], PRICES, max_gpus=None)
    assert tariff.pay(hours=2.0, gpu_hours=0.0) == Amount(4.0, 4.0 + 0.5, 2.0)
    assert tariff.pay(hours=2.0, gpu_hours=4.0) == Amount(4.0, 4.0 + 0.5, 2.0)


def test_a_group_with_a_price_of_its_own_goes_before_its_gpus() -> None:
    spot = {**WORKER, "Labels": {"ray.io/node-group": "spot"}}
    tariff = tariff_of([HEAD, spot], Prices("USD", {"A10G": 1.0}, {"spot": 0.6, "head": 0.25}), max_gpus=16)
    assert tariff.pay(hours=1.0, gpu_hours=2.0).cost == pytest.approx(0.6 + 0.25)


@pytest.mark.parametrize(
    ("hours", "told"),
    [(0, "none"), (0.001, "under a minute"), (0.2, "12 min"), (3.41, "3.4 h"), (47, "47.0 h"), (50.4, "2.1 days")],
)
def test_durations_are_told_in_the_unit_that_fits(hours: float, told: str) -> None:
    assert told_hours(hours) == told


def test_small_money_is_not_told_as_nothing() -> None:
    assert [told_cost(cost) for cost in (0, 0.0004, 0.456, 1234.5)] == ["0.00", "0.0004", "0.46", "1,234.50"]


def test_a_run_that_takes_more_than_is_left_is_told_before_it_begins() -> None:
    total, spent = Amount(10.0, 20.0, 1.0), Amount(5.0, 5.0, 1.0)
    assert demand_budget(total, spent, Budget(15.0, 25.0), "USD") == "within max_gpu_hours and max_cost"
    with pytest.raises(InputError, match=r"takes about 10 GPU hours, and 9 of max_gpu_hours 14 are left"):
        demand_budget(total, spent, Budget(14.0, 25.0), "USD")
    with pytest.raises(InputError, match=r"takes about 20 USD, and 0 of max_cost 5 are left; raise max_cost"):
        demand_budget(total, spent, Budget(15.0, 5.0), "USD")


def test_a_limit_of_money_needs_prices() -> None:
    with pytest.raises(InputError, match="`max_cost` needs `prices`"):
        load_config("demo", ["max_cost=3"])
    assert load_config("demo", ["max_cost=3", "prices.gpu_hour.A10G=1.2"]).prices.gpu_hour == {"A10G": 1.2}
