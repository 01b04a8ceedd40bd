"""What a run has taken from a dataset: which image is in which shard, and how a later start sees changes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import commonpath
from typing import Any

import pyarrow as pa

from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.images.places import COCO, TOY, file_of
from fmwsss.jobs.images.readers.base import SOURCES, Source

STAGE = "images"
FILE = "_dataset.parquet"
RECORD = pa.schema([("shard", pa.int32()), *SOURCES, ("token", pa.string())])
COMPARED = ("classes", "problem", "token")  # of a source: where one differs, its content is looked at


@dataclass(frozen=True)
class Changes:
    """How a dataset differs from what was taken of it, by image id.

    Attributes:
        new: images that were not there.
        gone: images that are no longer there.
        suspects: images whose files, labels or ground truth may have changed; only their content can tell.
    """

    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.suspects)


def read_record(run: Run, stage: str) -> list[dict[str, Any]] | None:
    """What a run knows of where its images came from.

    Args:
        run: the run folder.
        stage: that holds the images.

    Returns:
        The rows of RECORD; None where there are none, as in a run of an earlier release.
    """
    folder = run.folder.child(stage)
    return folder.read_table(FILE).to_pylist() if folder.exists(FILE) else None


def write_record(run: Run, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows of RECORD; before the first part.

    Args:
        run: the run folder.
        stage: that holds the images.
        rows: of RECORD.
    """
    run.folder.child(stage).write_table(FILE, rows, RECORD)


def rows_of(sources: Sequence[Source], shard_rows: int) -> list[dict[str, Any]]:
    """The rows of RECORD of a dataset that is taken for the first time.

    Args:
        sources: the images in their order.
        shard_rows: images of a shard.

    Returns:
        One row for each image, with its shard and the token of its files.
    """
    tokens = tokens_of(sources)
    return [
        {"shard": index // shard_rows, **vars(source), "token": token}
        for index, (source, token) in enumerate(zip(sources, tokens, strict=True))
    ]


def source_of(row: Mapping[str, Any]) -> Source:
    """The source that a row of RECORD was made from."""
    own = {name: row[name] for name in SOURCES.names}
    return Source(**{**own, "classes": None if own["classes"] is None else tuple(own["classes"])})


def compare(rows: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Changes:
    """How a dataset differs from what was taken of it.

    Args:
        rows: of RECORD, as they were written.
        now: of RECORD, of the dataset as it is.
    """
    before, after = ({_key(row): row for row in table} for table in (rows, now))
    suspects = [key[0] for key in after if key in before and _differ(before[key], after[key])]
    return Changes(
        [key[0] for key in after if key not in before], [key[0] for key in before if key not in after], suspects
    )


def _key(row: Mapping[str, Any]) -> tuple[str, bool]:
    """An id is unique among the images without a problem; one that has one may be another's double."""
    return row["image_id"], row["problem"] is None or "more than once" not in row["problem"]


def _differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return any(_plain(before[key]) != _plain(after[key]) for key in COMPARED)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def merged(
    rows: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], shard_rows: int
) -> list[dict[str, Any]]:
    """The rows of RECORD of a dataset that has changed: what stays keeps its shard, what is new gets new ones.

    Args:
        rows: that the run has.
        now: of the dataset as it is now.
        shard_rows: images of a new shard.

    Returns:
        First those that stay, in the order that they had; then the new ones.
    """
    shard_of = {_key(row): row["shard"] for row in rows}
    first = max((row["shard"] for row in rows), default=-1) + 1
    stays = [{**row, "shard": shard_of[_key(row)]} for row in now if _key(row) in shard_of]
    new = [row for row in now if _key(row) not in shard_of]
    added = [{**row, "shard": first + index // shard_rows} for index, row in enumerate(new)]
    order = {_key(row): index for index, row in enumerate(rows)}
    return [*sorted(stays, key=lambda row: order[_key(row)]), *added]


def tokens_of(sources: Sequence[Source]) -> list[str]:
    """For each image what changes when its files do: sizes and times, or what a store calls their content."""
    columns = [
        _tokens([getattr(source, name) or "" for source in sources])
        for name in ("image_url", "truth_url", "annotation_url")
    ]
    return ["|".join(words).rstrip("|") for words in zip(*columns, strict=True)]


def _tokens(places: Sequence[str]) -> list[str]:
    """The token of each place, none where it is nothing; one LIST for all objects of a store."""
    files = [file_of(place) for place in places]
    objects = sorted({file for file in files if "://" in file})
    known: dict[str, str] = _object_tokens(objects) if objects else {}
    for file in {file for file in files if file and "://" not in file and not file.startswith(TOY)}:
        try:
            about = os.stat(file)
            known[file] = f"{about.st_size}:{about.st_mtime_ns}"
        except OSError:
            known[file] = "absent"
    return [_token(place, known.get(file, "")) for place, file in zip(places, files, strict=True)]


def _token(place: str, token: str) -> str:
    """A place in a file has the file's token, and where it is there: another row of a table is another image."""
    if place.startswith(COCO):  # the annotations may be moved about in a json that says the same
        return f"{token}#{place.split(':', 3)[1]}"
    where = place[: len(place) - len(file_of(place))]
    return (
        f"{where}{token}" if where and not place.startswith(TOY) else token or (place if place.startswith(TOY) else "")
    )


def _object_tokens(urls: Iterable[str]) -> dict[str, str]:
    """By URL; those of one bucket by one LIST of what they have in common."""
    buckets: dict[str, list[str]] = {}
    for url in urls:
        scheme, _, rest = url.partition("://")
        buckets.setdefault(f"{scheme}://{rest.partition('/')[0]}", []).append(url)
    found: dict[str, str] = {}
    for bucket, own in buckets.items():
        paths = [url.removeprefix(f"{bucket}/").rpartition("/")[0] for url in own]
        folder = Folder(f"{bucket}/{commonpath(paths)}".rstrip("/"))
        try:
            found |= {f"{folder.url}/{name}": token for name, token in folder.tokens().items()}
        except StorageError:
            continue  # read one by one they tell what is wrong
    return found
