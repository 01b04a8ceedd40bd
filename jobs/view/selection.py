"""Which images are looked at, and in which order: the query of an address, so that it can be shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int64

from fmwsss.core.errors import InputError
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.view.run_index import NUMBERS, Snapshot

SORTS = {
    "uncertainty": ("confidence", False),
    "confidence": ("confidence", True),
    "iou": ("iou", False),
    "disagreement": ("disagreement", True),
    "coverage": ("coverage", False),
    "area": ("area", True),
    "changed": ("changed", True),
}
ORDERS = (*SORTS, "id", "run")
ANY = "any"
pc: Any = pyarrow.compute  # its functions are made when it is imported: a checker does not know them


@dataclass(frozen=True)
class Selection:
    """A choice of images.

    Attributes:
        label: a class that they have as a label; empty for all.
        missing: a label that has no pixel; `any` for any; empty for all.
        text: that their ids contain.
        bounds: by one of NUMBERS, least and greatest.
        failed: only those that a stage could not use.
        verdict: `accepted`, `rejected`, `corrected`, `untouched`; empty for all.
        sort: one of ORDERS.
    """

    label: str = ""
    missing: str = ""
    text: str = ""
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    failed: bool = False
    verdict: str = ""
    sort: str = "uncertainty"

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Selection:
        """The selection that an address names.

        Raises:
            InputError: a number is none, or there is no such order.
        """
        bounds = {}
        for name in NUMBERS:
            low, high = (_number(query, f"{name}_{side}") for side in ("min", "max"))
            if low is not None or high is not None:
                bounds[name] = (-np.inf if low is None else low, np.inf if high is None else high)
        sort = query.get("sort", "uncertainty")
        if sort not in ORDERS:
            raise InputError(f"there is no order {sort[:40]!r}: use {', '.join(ORDERS)}")
        return cls(
            query.get("class", ""), query.get("missing", ""), query.get("text", ""), bounds,
            query.get("failed", "") == "1", query.get("verdict", ""), sort,
        )  # fmt: skip

    def rows(
        self, snapshot: Snapshot, vocabulary: Vocabulary, verdicts: Mapping[str, str] | None = None
    ) -> Int64[np.ndarray, " selected"]:
        """The images that are meant, in their order.

        Args:
            snapshot: of the run.
            vocabulary: of the run.
            verdicts: what people said, by image.

        Raises:
            InputError: no such class.
        """
        keep = np.ones(len(snapshot), bool)
        if self.label:
            keep &= _having(snapshot.labels, vocabulary.index(self.label), len(snapshot))
        if self.missing:
            index = None if self.missing == ANY else vocabulary.index(self.missing)
            keep &= _having(snapshot.missing, index, len(snapshot))
        for name, (low, high) in self.bounds.items():
            values = snapshot.numbers[name]
            keep &= (values >= low) & (values <= high)  # NaN is in no bounds
        if self.text:
            keep &= _contains(snapshot.ids, self.text)
        if self.failed:
            keep &= snapshot.is_failed
        if self.verdict:
            keep &= _judged(snapshot.ids, self.verdict, verdicts or {})
        rows = np.flatnonzero(keep)
        if self.sort == "run":
            return rows
        if self.sort == "id":
            return rows[np.argsort(snapshot.ids.take(pa.array(rows)).to_numpy(zero_copy_only=False), kind="stable")]
        name, is_falling = SORTS[self.sort]
        values = snapshot.numbers[name][rows]
        return rows[np.argsort(-values if is_falling else values, kind="stable")]  # NaN last


def _number(query: Mapping[str, str], key: str) -> float | None:
    text = query.get(key, "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{key} is a number, not {text[:40]!r}") from None


def _having(pairs: tuple[np.ndarray, np.ndarray], index: int | None, count: int) -> np.ndarray:
    rows, classes = pairs
    found = np.zeros(count, bool)
    found[rows if index is None else rows[classes == index]] = True
    return found


def _contains(ids: pa.Array, text: str) -> np.ndarray:
    return pc.match_substring(ids, text, ignore_case=True).to_numpy(zero_copy_only=False).astype(bool)


def _judged(ids: pa.Array, verdict: str, verdicts: Mapping[str, str]) -> np.ndarray:
    known = pa.array([name for name, own in verdicts.items() if verdict in ("untouched", own)], pa.string())
    found = pc.is_in(ids, value_set=known).to_numpy(zero_copy_only=False).astype(bool)
    return ~found if verdict == "untouched" else found
