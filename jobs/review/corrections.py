"""What people say of the images of a run: rows of `<run>/review/`, each file written once and never changed.

Several people write at once: every batch is a new file of a name of its own. What counts is found by reading all of
them in the order of their times; an `undo` names the correction that it takes back.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.parquet import table_bytes
from fmwsss.cluster.storage.storage_errors import StorageError
from fmwsss.core.errors import InputError
from fmwsss.core.schemas import REVIEW
from fmwsss.core.seeds.corrections import PaintedRegion
from fmwsss.core.vocabulary import Vocabulary

FOLDER = "review"
APPLIED_FILE = "_applied.parquet"  # of what the seeds were made with; the only file that a run writes there
PAINT, ADD, STRIKE, ACCEPT, REJECT, UNDO = "paint", "add", "strike", "accept", "reject", "undo"
VERDICTS = {ACCEPT: "accepted", REJECT: "rejected"}
NUM_READERS = 16


class ReviewError(InputError):
    """A correction that can't be taken; one line."""


@dataclass(frozen=True)
class Standing:
    """What counts of the corrections of one image.

    Attributes:
        added, struck: labels, in the order in which people said so.
        painted: rows of REVIEW.
        verdict: `accepted` or `rejected`, the latest; else `corrected`.
        author, made_at: of the latest.
        num_corrections: that count.
    """

    added: tuple[str, ...] = ()
    struck: tuple[str, ...] = ()
    painted: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    verdict: str = "corrected"
    author: str = ""
    made_at: datetime | None = None
    num_corrections: int = 0

    @property
    def labels_key(self) -> tuple[Any, ...]:
        """Equal where the labels are changed in the same way."""
        return frozenset(self.added), frozenset(self.struck)

    @property
    def painted_key(self) -> tuple[Any, ...]:
        """Equal where the same regions are painted in the same order."""
        return tuple((row["class_name"], row["height_px"], row["width_px"], row["rle"]) for row in self.painted)

    def classes(self, classes: Sequence[str]) -> list[str]:
        """The labels of the image, of those that the dataset gives it; in no order."""
        return [name for name in dict.fromkeys((*classes, *self.added)) if name not in self.struck]

    def regions(self, vocabulary: Vocabulary) -> tuple[PaintedRegion, ...]:
        """What was painted, for `with_corrections`."""
        return tuple(
            PaintedRegion(
                row["height_px"],
                row["width_px"],
                row["rle"],
                vocabulary.index(row["class_name"]) if row["class_name"] else 0,
            )
            for row in self.painted
        )


def new_row(image_id: str, action: str, author: str, **values: Any) -> dict[str, Any]:
    """A row of REVIEW of this moment.

    Args:
        image_id: of the image.
        action: `paint`, `add`, `strike`, `accept`, `reject` or `undo`.
        author: who says so.
        values: other columns.
    """
    own = {"correction_id": uuid.uuid4().hex, "image_id": image_id, "action": action, "author": author}
    return {**dict.fromkeys(REVIEW.names), **own, "made_at": datetime.now(timezone.utc), **values}


def append(run_folder: Folder, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows of REVIEW as one new file, whole or not at all; its name.

    Args:
        run_folder: of the run.
        rows: at least one.

    Raises:
        StorageError: it can't be written.
    """
    first = rows[0]
    name = f"{first['made_at'].strftime('%Y%m%dT%H%M%S%fZ')}-{first['correction_id']}.parquet"
    if not run_folder.child(FOLDER).create(name, table_bytes(rows, REVIEW)):
        raise StorageError(f"can't write {run_folder.url}/{FOLDER}/{name}: there is another file of this name")
    return name


class ReviewLog:
    """The corrections of a run, read again where there are new files; files that were read are not read twice."""

    def __init__(self, run_folder: Folder) -> None:
        self._folder = run_folder.child(FOLDER)
        self._read: dict[str, list[dict[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of their times."""
        names = [name for name in self._folder.list() if name.endswith(".parquet") and not name.startswith("_")]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            new = [name for name in names if name not in self._read]
            tables = pool.map(lambda name: self._folder.read_table(name).to_pylist(), new)
            self._read |= dict(zip(new, tables, strict=True))
        return in_order(row for name in names for row in self._read[name])

    def note(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A file that was written by this process.

        Args:
            name: of the file.
            rows: in it.
        """
        self._read[name] = [dict(row) for row in rows]

    def known_rows(self) -> list[dict[str, Any]]:
        """Those of the files that were read or noted; nothing is asked of the storage."""
        return in_order(row for rows in [*self._read.values()] for row in rows)


def in_order(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of REVIEW by time; of one moment by their ids."""
    return sorted(map(dict, rows), key=lambda row: (row["made_at"], row["correction_id"]))


def counting(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that were not taken back, without those that take back.

    Args:
        rows: in their order.
    """
    void: set[str] = set()
    kept = []
    for row in reversed(rows):
        if row["correction_id"] in void:
            continue
        if row["action"] == UNDO:
            void.add(row["undoes"])
        else:
            kept.append(row)
    return kept[::-1]


def standing(rows: Sequence[Mapping[str, Any]]) -> dict[str, Standing]:
    """What counts, by image.

    Args:
        rows: of REVIEW, in their order.
    """
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for row in counting(rows):
        by_image.setdefault(row["image_id"], []).append(row)
    return {image_id: _standing(own) for image_id, own in by_image.items()}


def _standing(rows: Sequence[Mapping[str, Any]]) -> Standing:
    last_word = {row["class_name"]: row["action"] for row in rows if row["action"] in (ADD, STRIKE)}
    verdicts = [VERDICTS[row["action"]] for row in rows if row["action"] in VERDICTS]
    return Standing(
        added=tuple(name for name, action in last_word.items() if action == ADD),
        struck=tuple(name for name, action in last_word.items() if action == STRIKE),
        painted=tuple(row for row in rows if row["action"] == PAINT),
        verdict=verdicts[-1] if verdicts else "corrected",
        author=rows[-1]["author"],
        made_at=rows[-1]["made_at"],
        num_corrections=len(rows),
    )
