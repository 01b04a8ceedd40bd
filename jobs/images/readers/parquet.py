"""Reader of Parquet files that hold encoded images, as Hugging Face's datasets and our own runs have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.images.places import parquet_place
from fmwsss.jobs.images.readers.base import DatasetError, Listing, Source, id_of, listing_of, stem_of
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.label_table import IMAGE_COLUMNS, labels_of
from fmwsss.jobs.images.readers.table_files import Table, class_names_of, column_key

PICTURE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "png", "bytes")


def read_parquet(
    files_url: str,
    names: ClassNames,
    image: str | None = None,
    truth: str | None = None,
    split: str = "all",
    first_index: int | None = None,
) -> Listing:
    """Images and labels of Parquet files; no pixel is read here.

    Args:
        files_url: a file or a folder.
        names: the classes of the run.
        image: the column of images; None finds it.
        truth: the column of label PNGs; None for none.
        split: files whose names begin with it are taken alone, if there are such.
        first_index: number of the first class, where labels are numbers without names.

    Raises:
        DatasetError: no such files, or no column of images or of labels.
    """
    folder, files = _files(files_url, split)
    sources, notes, questions = [], {}, {}
    seen: set[str] = set()
    for name in files:
        try:
            with folder.open(name) as opened:
                part = pq.ParquetFile(opened)
                found = _read_one(part, f"{folder.url}/{name}", names, image, truth, first_index)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{folder.url}/{name} can't be read as Parquet") from error
        of_file, own_notes, own_questions = found
        for source in of_file:
            # Rows without a name are called by their file; names may come again in the next one.
            own_id = source.image_id if source.image_id not in seen else id_of(f"{stem_of(name)}/{source.image_id}")
            seen.add(own_id)
            sources.append(Source(own_id, source.image_url, source.classes, source.truth_url, problem=source.problem))
        notes |= dict.fromkeys(own_notes)
        questions |= dict.fromkeys(own_questions)
    notes |= dict.fromkeys(names.notes())
    questions |= dict.fromkeys(names.questions())
    return listing_of(sources, folder.url, list(notes), list(questions))


def _files(url: str, split: str) -> tuple[Folder, list[str]]:
    if url.endswith(".parquet"):
        parent, _, name = url.rpartition("/")
        return Folder(parent or "."), [name]
    folder = Folder(url)
    files = [
        name
        for name in folder.list()
        if name.endswith(".parquet") and not name.rpartition("/")[2].startswith(("_", "."))
    ]
    if not files:
        raise DatasetError(f"there are no .parquet files in {folder.url}")
    of_split = [name for name in files if name.rpartition("/")[2].startswith(f"{split}-")]
    return folder, of_split or files


def _read_one(
    part: pq.ParquetFile, url: str, names: ClassNames, image: str | None, truth: str | None, first_index: int | None
) -> tuple[list[Source], list[str], list[str]]:
    schema = part.schema_arrow
    pictures = [own.name for own in schema if _holds_bytes(own.type)]
    if image is None:
        known = [
            name for name in pictures if column_key(name) in ("image", "img", "photo", "picture", "jpg", "png", "bytes")
        ]
        image = (known or pictures or [None])[0]
    for column, what in ((image, "image"), (truth, "truth")):
        if column is not None and column not in pictures:
            raise DatasetError(
                f"{url} has no column {column!r} of bytes (dataset.{what}); it has {', '.join(schema.names)}"
            )
    if image is None:
        raise DatasetError(f"{url} has no column of encoded images; it has {', '.join(schema.names)}")
    others = [name for name in schema.names if name not in pictures]
    rows = part.read(columns=others).to_pylist() if others else [{}] * part.metadata.num_rows
    called = _names_of(part, schema, image, others, rows, url)
    labelled = [name for name in others if column_key(name) not in IMAGE_COLUMNS]
    table = Table(
        url, ["image_id", *labelled], [[index, *(row[name] for name in labelled)] for index, row in enumerate(rows)],
        [], class_names_of(schema),
    )  # fmt: skip
    labels = labels_of(table, names, None, first_index)
    sources = [
        Source(
            id_of(called[index]),
            parquet_place(url, index, image),
            tuple(labels.of.get(str(index), ())),
            parquet_place(url, index, truth) if truth else None,
            problem=labels.problems.get(str(index)),
        )
        for index in range(len(rows))
    ]
    return sources, labels.notes, labels.questions


def _names_of(
    part: pq.ParquetFile, schema: pa.Schema, image: str, others: Sequence[str], rows: list[dict[str, Any]], url: str
) -> list[str]:
    """What each row is called: by a column of names, by the path beside the bytes, or by file and number."""
    keys = {column_key(name): name for name in others}
    column = next((keys[key] for key in IMAGE_COLUMNS if key in keys), None)
    if column is not None:
        given = [str(row[column]) for row in rows]
    else:
        kind = schema.field(image).type
        given = []
        if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            paths = part.read(columns=[f"{image}.path"]).column(0).to_pylist()
            given = [str((path or {}).get("path") or "") for path in paths]
    stem = stem_of(url.rpartition("/")[2])
    is_own = all(given) and len(set(map(stem_of, given))) == len(rows)
    if given and is_own:
        return [stem_of(name.lstrip("/")) for name in given]
    return [f"{stem}-{index:06d}" for index in range(len(rows))]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
