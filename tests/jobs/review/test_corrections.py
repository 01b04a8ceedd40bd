"""Which corrections count: those that nobody took back, in the order of their times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fmwsss.core.schemas import REVIEW
from fmwsss.jobs.review.corrections import counting, in_order, standing

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def row(number: int, action: str, **values: Any) -> dict[str, Any]:
    own = {"correction_id": f"{number}", "image_id": "a", "action": action, "author": "x"}
    return {**dict.fromkeys(REVIEW.names), **own, "made_at": BEGIN + timedelta(seconds=number), **values}


def test_the_last_word_on_a_label_and_the_last_verdict_count() -> None:
    rows = [
        row(0, "add", class_name="cow"),
        row(1, "accept"),
        row(2, "strike", class_name="cow"),
        row(3, "strike", class_name="cat"),
        row(4, "reject"),
        row(5, "undo", undoes="4"),
    ]
    own = standing(rows)["a"]
    assert (own.added, own.struck, own.verdict, own.num_corrections) == ((), ("cow", "cat"), "accepted", 4)
    assert own.classes(["cat", "dog"]) == ["dog"]


def test_an_undo_that_is_undone_is_none() -> None:
    rows = [row(0, "add", class_name="cow"), row(1, "undo", undoes="0"), row(2, "undo", undoes="1")]
    assert standing(rows)["a"].added == ("cow",)
    assert standing(rows[:2]) == {}


@given(st.lists(st.integers(0, 8), max_size=9), st.randoms())
def test_undone_is_what_a_reader_from_the_end_finds(targets: list[int], random: Any) -> None:
    rows = [row(number, "accept") if target >= number else row(number, "undo", undoes=f"{target}")
            for number, target in enumerate(targets)]  # fmt: skip
    void: set[int] = set()
    for number in range(len(targets) - 1, -1, -1):
        if number not in void and targets[number] < number:
            void.add(targets[number])
    expected = [f"{n}" for n, target in enumerate(targets) if n not in void and target >= n]
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert [own["correction_id"] for own in counting(in_order(shuffled))] == expected
