"""What `fmwsss view` knows of every image of a run: ids and figures, in columns; no picture is read for it.

It is built part by part beside the server, so that a first screen needs the first parts alone, and it stays small: some
hundred bytes an image.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int16, Int32

from fmwsss.cluster.storage.ledger import FAILURES_FOLDER, Run, part_index, part_name
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.reports.image_figures import FIGURES_FILE
from fmwsss.jobs.run_layout import PREDICTED, REFINED

BASES = ("seeds/fine", "seeds/coarse", REFINED, PREDICTED, "images")  # the first that has parts is gone through
NUMBERS = ("confidence", "coverage", "area", "disagreement", "iou", "changed")
COLUMN_OF = {"confidence": "mean_confidence", "coverage": "coverage"}
NUM_READERS = 8
FIRST_PARTS = 8  # that are read before the first screen
PARTS_AT_ONCE = 256

Pairs = tuple[Int32[np.ndarray, " pairs"], Int16[np.ndarray, " pairs"]]  # (row, class index)


@dataclass(frozen=True)
class Snapshot:
    """The index as it is at a moment; never changed, but replaced.

    Attributes:
        ids: of the images.
        parts: index of the part that each is in; -1 where it is not known.
        numbers: by one of NUMBERS; NaN where there is none.
        labels: which image has which label.
        missing: which image has no pixel of which label.
        is_failed: whether a stage could not use it.
        num_parts, all_parts: that are in it, and that there are.
    """

    ids: pa.Array
    parts: Int32[np.ndarray, " images"]
    numbers: dict[str, Float32[np.ndarray, " images"]]
    labels: Pairs
    missing: Pairs
    is_failed: np.ndarray
    num_parts: int
    all_parts: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_whole(self) -> bool:
        """Whether every part is in it."""
        return self.num_parts == self.all_parts

    def has(self, number: str) -> bool:
        """Whether any image has this number."""
        return bool(np.isfinite(self.numbers[number]).any())

    def num_bytes(self) -> int:
        """What it takes in memory."""
        arrays = [self.parts, *self.numbers.values(), *self.labels, *self.missing, self.is_failed]
        return self.ids.nbytes + sum(array.nbytes for array in arrays)


@dataclass
class RunIndex:
    """The growing index of one run.

    Attributes:
        run: whose images they are.
        vocabulary: of the run.
        base: the stage whose parts are gone through.
        snapshot: the newest.
        failures: of an image, what each stage says: stage, error_type, message.
        error: what ended the reading before its end, in words.
    """

    run: Run
    vocabulary: Vocabulary
    base: str
    snapshot: Snapshot
    failures: dict[str, list[dict[str, str]]]
    error: str | None = None
    _failed_parts: dict[str, int] = field(default_factory=dict)
    _parts: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, run: Run, vocabulary: Vocabulary) -> RunIndex:
        """The index with the first parts in it.

        Args:
            run: the run folder.
            vocabulary: of the run.
        """
        base = next((stage for stage in BASES if run.parts(stage)), "images")
        failures, failed_parts = _failures(run)
        index = cls(run, vocabulary, base, _empty(), failures)
        index._failed_parts = failed_parts
        index._parts = run.parts(base)
        index._extend(index._parts[:FIRST_PARTS])
        return index

    def start(self) -> threading.Thread:
        """Reads the other parts in a thread of its own; returns it."""
        thread = threading.Thread(target=self.read_all, name="index", daemon=True)
        thread.start()
        return thread

    def read_all(self) -> None:
        """Reads the other parts."""
        try:
            for begin in range(self.snapshot.num_parts, len(self._parts), PARTS_AT_ONCE):
                self._extend(self._parts[begin : begin + PARTS_AT_ONCE])
        except Exception as error:  # told on the page: a thread has nobody else to tell
            self.error = f"{type(error).__name__}: {error}"

    def row_of(self, image_id: str) -> int | None:
        """The place of an image in the newest snapshot; None where there is no such image."""
        row = pc.index(self.snapshot.ids, image_id).as_py()
        return None if row < 0 else row

    def part_of(self, image_id: str) -> str | None:
        """The part that an image is in; None where there is no such image."""
        row = self.row_of(image_id)
        index = -1 if row is None else int(self.snapshot.parts[row])
        return None if index < 0 else part_name(index)

    def set_numbers(self, name: str, values: Float32[np.ndarray, " images"]) -> None:
        """Lays a column of numbers over the newest snapshot.

        Args:
            name: one of NUMBERS.
            values: one for each image.
        """
        self.snapshot = replace(self.snapshot, numbers={**self.snapshot.numbers, name: values})

    def _extend(self, parts: Sequence[str]) -> None:
        with ThreadPoolExecutor(NUM_READERS) as pool:
            tables = list(pool.map(self._read, parts))
        done = self.snapshot.num_parts + len(parts)
        pieces = [_piece(table, part, self.vocabulary) for table, part in zip(tables, parts, strict=True)]
        whole = _joined([self.snapshot, *pieces], done, len(self._parts))
        if done == len(self._parts):
            whole = self._with_figures(self._with_failures(whole))
        self.snapshot = whole

    def _read(self, part: str) -> pa.Table:
        wanted = {
            "images": ["image_id", "classes"],
            PREDICTED: ["image_id", "classes", "mean_confidence"],
            REFINED: ["image_id", "classes", "mean_confidence", "coverage"],
        }.get(self.base, ["image_id", "classes", "mean_confidence", "coverage", "missing"])
        return self.run.read_part(self.base, part, columns=wanted)

    def _with_failures(self, whole: Snapshot) -> Snapshot:
        """Images that a stage could not use are no rows of the stages after it."""
        known = set(whole.ids.to_pylist())
        more = [image_id for image_id in self.failures if image_id not in known]
        piece = replace(
            _empty(len(more)),
            ids=pa.array(more, pa.string()),
            parts=np.array([self._failed_parts[image_id] for image_id in more], np.int32),
        )
        joined = _joined([whole, piece], whole.num_parts, whole.all_parts)
        is_failed = np.array([image_id in self.failures for image_id in joined.ids.to_pylist()], bool)
        return replace(joined, is_failed=is_failed)

    def _with_figures(self, whole: Snapshot) -> Snapshot:
        folder = self.run.folder.child("reports")
        if not folder.exists(FIGURES_FILE):
            return whole
        table = folder.read_table(FIGURES_FILE)
        rows = {image_id: row for row, image_id in enumerate(table["image_id"].to_pylist())}
        found = np.array([rows.get(image_id, -1) for image_id in whole.ids.to_pylist()], np.int64)
        numbers = dict(whole.numbers)
        for name in ("area", "disagreement", "iou"):
            values = np.append(table[name].to_numpy().astype(np.float32), np.float32(np.nan))
            numbers[name] = values[found]
        return replace(whole, numbers=numbers)


def _empty(count: int = 0) -> Snapshot:
    none = np.zeros(0, np.int32), np.zeros(0, np.int16)
    return Snapshot(
        ids=pa.array([""] * count, pa.string()),
        parts=np.full(count, -1, np.int32),
        numbers={name: np.full(count, np.nan, np.float32) for name in NUMBERS},
        labels=none,
        missing=none,
        is_failed=np.zeros(count, bool),
        num_parts=0,
        all_parts=0,
    )


def _piece(table: pa.Table, part: str, vocabulary: Vocabulary) -> Snapshot:
    own = _empty(table.num_rows)
    numbers = dict(own.numbers)
    for name, column in COLUMN_OF.items():
        if column in table.column_names:
            numbers[name] = table[column].to_numpy(zero_copy_only=False).astype(np.float32)
    return replace(
        own,
        ids=pa.array(table["image_id"].to_pylist(), pa.string()),
        parts=np.full(table.num_rows, part_index(part), np.int32),
        numbers=numbers,
        labels=_pairs(table["classes"].to_pylist(), vocabulary),
        missing=_pairs(table["missing"].to_pylist(), vocabulary) if "missing" in table.column_names else own.missing,
    )


def _pairs(names: Iterable[Sequence[str] | None], vocabulary: Vocabulary) -> Pairs:
    known = {name: index for index, name in enumerate(vocabulary.classes, start=1)}
    pairs = [(row, known[name]) for row, own in enumerate(names) for name in own or () if name in known]
    return np.array([row for row, _ in pairs], np.int32), np.array([index for _, index in pairs], np.int16)


def _joined(pieces: Sequence[Snapshot], num_parts: int, all_parts: int) -> Snapshot:
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])[:-1]

    def pairs(name: str) -> Pairs:
        own: list[Pairs] = [getattr(piece, name) for piece in pieces]
        rows = np.concatenate([rows + start for (rows, _), start in zip(own, starts, strict=True)]).astype(np.int32)
        return rows, np.concatenate([classes for _, classes in own])

    return Snapshot(
        ids=pa.concat_arrays([piece.ids for piece in pieces]),
        parts=np.concatenate([piece.parts for piece in pieces]),
        numbers={name: np.concatenate([piece.numbers[name] for piece in pieces]) for name in NUMBERS},
        labels=pairs("labels"),
        missing=pairs("missing"),
        is_failed=np.concatenate([piece.is_failed for piece in pieces]),
        num_parts=num_parts,
        all_parts=all_parts,
    )


def _failures(run: Run) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """By image what the stages say, and the part that it is in."""
    said: dict[str, list[dict[str, Any]]] = {}
    places: dict[str, int] = {}
    folder = run.folder.child(FAILURES_FOLDER)
    stages = sorted({name.rpartition("/")[0] for name in folder.list() if name.endswith(".parquet")})
    for stage in stages:
        for part in run.failed_parts(stage):
            table = folder.child(stage).read_table(
                run.file_of(stage, part), ["image_id", "stage", "error_type", "message"]
            )
            for row in table.to_pylist():
                said.setdefault(row["image_id"], []).append({key: row[key] for key in row if key != "image_id"})
                places[row["image_id"]] = part_index(part)
    return said, places
