"""Two runs side by side: how much of each image's last seed differs, found out beside the server."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmwsss.cluster.storage.ledger import part_name
from fmwsss.core.images import decode_label_png
from fmwsss.jobs.view.opened_run import OpenedRun

STAGE, COLUMN = "seeds/fine", "seed"
SHOWN_EVERY = 64  # parts: between two states of the column


class Comparison:
    """The share of pixels that differ, image by image; NaN until it is known, and where the other run has none.

    Attributes:
        opened: the run that is looked at.
        other: the run that it is compared with.
    """

    def __init__(self, opened: OpenedRun, other: OpenedRun) -> None:
        self.opened, self.other = opened, other
        self._done = self._all = 0
        self._their_parts: set[str] = set()
        self.error: str | None = None

    def start(self) -> threading.Thread:
        """Reads both indexes and compares, in a thread of its own; returns it."""
        thread = threading.Thread(target=self.compare_all, name="comparison", daemon=True)
        thread.start()
        return thread

    def progress(self) -> dict[str, Any]:
        """How far it is."""
        return {"done": self._done, "all": self._all, "error": self.error}

    def compare_all(self) -> None:
        """Compares all images."""
        try:
            self.opened.index.read_all()
            self.other.index.read_all()
            self._compare()
        except Exception as error:  # told on the page: a thread has nobody else to tell
            self.error = f"{type(error).__name__}: {error}"

    def _compare(self) -> None:
        index = self.opened.index
        rows = {image_id: row for row, image_id in enumerate(index.snapshot.ids.to_pylist())}
        there = self.other.index.snapshot
        places = dict(zip(there.ids.to_pylist(), there.parts.tolist(), strict=True))
        values = np.full(len(rows), np.nan, np.float32)
        parts, self._their_parts = self.opened.run.parts(STAGE), set(self.other.run.parts(STAGE))
        self._all = len(parts)
        for number, part in enumerate(parts):
            mine, theirs = self._seeds(part, places)
            for image_id, seed in mine.items():
                if image_id in rows and image_id in theirs:
                    values[rows[image_id]] = changed_share(seed, theirs[image_id])
            self._done = number + 1
            if self._done % SHOWN_EVERY == 0 or self._done == self._all:
                index.set_numbers("changed", values.copy())

    def _seeds(self, part: str, places: Mapping[str, int]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        columns = ["image_id", COLUMN]
        mine = _by_id(self.opened.run.read_part(STAGE, part, columns=columns))
        # The other run may have the same images in other parts.
        theirs: dict[str, bytes] = {}
        for place in sorted({part_name(places[image_id]) for image_id in mine if places.get(image_id, -1) >= 0}):
            if place in self._their_parts:
                theirs |= _by_id(self.other.run.read_part(STAGE, place, columns=columns))
        return mine, theirs


def changed_share(first: bytes, second: bytes) -> float:
    """The share of pixels whose class differs; 1 where the sizes differ.

    Args:
        first: a label PNG.
        second: another one.
    """
    if first == second:
        return 0.0
    one, two = decode_label_png(first), decode_label_png(second)
    return float((one != two).mean()) if one.shape == two.shape else 1.0


def _by_id(table: Any) -> dict[str, bytes]:
    return dict(zip(table["image_id"].to_pylist(), table[COLUMN].to_pylist(), strict=True))
