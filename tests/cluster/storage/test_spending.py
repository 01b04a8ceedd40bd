"""What machines cost, summed over the starts of a run, and held against its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.spending import (
    SPENDING,
    Amount,
    Budget,
    Prices,
    price_of,
    spent_by,
    spent_in_an_hour,
    told_spent,
)

PRICES = Prices("USD", {"A10G": 0.5, "H100": 3.0}, {"head": 0.25, "spot": 1.5, "cpu": 0.1})


def machine(group: str = "", kind: str = "", num_gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    labels = {"ray.io/node-group": group} if group else {}
    resources = {"CPU": 8.0, **({"GPU": num_gpus, f"accelerator_type:{kind}": 1.0} if num_gpus else {})}
    return {"Alive": alive, "Labels": labels, "Resources": resources}


@pytest.mark.parametrize(
    ("node", "price"),
    [
        (machine("head"), 0.25),
        (machine(), 0.1),
        (machine(kind="A10G", num_gpus=4), 2.0),
        (machine("spot", "A10G", 4), 1.5),  # the price of the machine goes before that of its GPUs
        (machine("other", "H100", 1), 3.0),
        (machine(kind="T4", num_gpus=1), None),
    ],
)
def test_a_machine_is_priced_by_its_group_else_by_its_gpus(node: dict[str, Any], price: float | None) -> None:
    assert price_of(node, PRICES) == price


def test_a_kind_of_gpu_is_also_told_by_a_label() -> None:
    node = {"Alive": True, "Labels": {"ray.io/accelerator-type": "H100"}, "Resources": {"GPU": 2.0}}
    assert price_of(node, PRICES) == 6.0


def test_dead_machines_and_those_without_a_price_cost_nothing() -> None:
    nodes = [machine("head"), machine(kind="A10G", num_gpus=1), machine(kind="A10G", num_gpus=1, alive=False),
             machine(kind="T4", num_gpus=2)]  # fmt: skip
    assert spent_in_an_hour(nodes, PRICES) == Amount(gpu_hours=3.0, cost=0.75, hours=1.0)


def test_all_starts_of_a_run_are_summed_and_half_a_file_is_no_obstacle(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert spent_by(folder) == Amount()
    folder.write(f"{SPENDING}/a.json", b'{"gpu_hours": 1.5, "cost": 2.0, "hours": 1.0}')
    folder.write(f"{SPENDING}/b.json", b'{"gpu_hours": 0.5, "cost": 1.0, "hours": 3.0}')
    folder.write(f"{SPENDING}/c.json", b'{"gpu_hours": 0.')
    assert spent_by(folder) == Amount(2.0, 3.0, 4.0)


def test_a_budget_is_spent_by_either_of_its_limits() -> None:
    spent = Amount(gpu_hours=2.0, cost=3.0)
    assert not Budget().is_spent(spent)
    assert not Budget(max_gpu_hours=2.1, max_cost=3.1).is_spent(spent)
    assert Budget(max_gpu_hours=2.0).is_spent(spent)
    assert Budget(max_gpu_hours=2.1, max_cost=2.9).is_spent(spent)
    line = told_spent(spent, Budget(max_gpu_hours=2.1, max_cost=2.9), "USD")
    assert line.startswith("the budget is spent: 2 of 2.1 GPU hours, 3 of 2.9 USD; ")
    assert line.endswith("The same command with a higher max_cost goes on from here")
