"""Tables as people have them: CSV of any separator and encoding, TSV, JSON, JSON lines, Parquet; perhaps compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmwsss.cluster.storage.folder import read_url
from fmwsss.jobs.images.readers.base import DatasetError, extension_of, stem_of

SEPARATORS = ",;\t|"
TEXT = frozenset({"csv", "tsv", "txt", "tab"})
_OPENERS = {"gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        url: where it is.
        columns: names as they are in the file, in their order.
        rows: a value for each column; text of a CSV, anything of Parquet and JSON. A row of a CSV may be longer.
        notes: what was guessed, a line each.
        class_names: of numbers in a column, where the file has them (a ClassLabel of Hugging Face's datasets).
    """

    url: str
    columns: list[str]
    rows: Sequence[Sequence[Any]]
    notes: list[str] = field(default_factory=list)
    class_names: list[str] | None = None


def read_table(url: str) -> Table:
    """A table of any kind that is known by its extension.

    Raises:
        DatasetError: another extension, no such table, or two columns of one name.
        StorageError: it can't be read.
    """
    kind, packing = extension_of(url), None
    if kind in _OPENERS:
        kind, packing = extension_of(stem_of(url)), _OPENERS[kind]
    if kind not in TEXT | {"parquet", "json", "jsonl", "ndjson"}:
        hint = "; save it as CSV" if kind in ("xls", "xlsx", "ods", "numbers") else ""
        raise DatasetError(f"the table of labels {url} is neither .csv, .tsv, .json, .jsonl nor .parquet{hint}")
    data = read_url(url)
    try:
        data = packing(data) if packing else data
        if kind == "parquet":
            return _parquet(url, data)
        text, notes = text_of(data)
        table = _csv(url, text, kind) if kind in TEXT else _json(url, text)
    except (pa.ArrowException, csv.Error, OSError, EOFError, lzma.LZMAError, RecursionError) as error:
        raise DatasetError(f"the table of labels {url} can't be read as {kind}") from error
    table.notes[:0] = [f"{url}: {note}" for note in notes]
    twice = [name for name, count in Counter(map(column_key, table.columns)).items() if count > 1 and name]
    if twice:
        raise DatasetError(f"the table of labels {url} has the column {twice[0]!r} twice; take one out, or rename it")
    return table


def column_key(name: str) -> str:
    """A column's name without case, spaces, `_` and `-`: `Image_ID`, ` image id` and `imageid` are one."""
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())


def text_of(data: bytes) -> tuple[str, list[str]]:
    """A text file of any encoding that is in use, and what was guessed of it."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return data.decode("utf-32", "replace"), []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), []
    if b"\0" in data[:200]:
        is_big = data[:1] == b"\0"
        return data.decode("utf-16-be" if is_big else "utf-16-le", "replace"), ["it is read as UTF-16"]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        note = "it is no UTF-8 and read as Windows-1252 (latin-1): look at names with accents"
        return data.decode("cp1252", "replace"), [note]


def _csv(url: str, text: str, kind: str) -> Table:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = text.splitlines(keepends=True)
    begin = 0
    for line in lines:  # comments, empty lines and Excel's `sep=;` before the header
        if line.strip() and not line.startswith("#") and not line.lower().startswith("sep="):
            break
        begin += 1
    if begin == len(lines):
        raise DatasetError(f"the table of labels {url} is empty")
    separator = _separator(lines[begin], kind)
    reader = csv.reader(StringIO("".join(lines[begin:]), newline=""), delimiter=separator, skipinitialspace=True)
    columns, *rows = reader
    usual = "\t" if kind in ("tsv", "tab") else ","
    notes = [f"{url}: its columns are separated by {separator!r}"] if separator != usual else []
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    return Table(url, [name.strip() for name in columns], rows, notes)


def _separator(header: str, kind: str) -> str:
    """The separator that a header has most of outside of quotes; of a single column, that of its kind."""
    outside = "".join(header.split('"')[::2])
    first = "\t" if kind in ("tsv", "tab") else ","
    ranked = sorted(SEPARATORS, key=lambda mark: (-outside.count(mark), mark != first))
    return ranked[0] if outside.count(ranked[0]) else first


def _json(url: str, text: str) -> Table:
    """A list of records, one record a line, or `{name: labels}`."""
    try:
        try:
            raw = json.loads(text)
        except ValueError:
            raw = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DatasetError(f"the table of labels {url} is no JSON: {error}") from None
    if isinstance(raw, dict):
        raw = [{"image_id": name, "classes": classes} for name, classes in raw.items()]
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise DatasetError(f"the table of labels {url} is neither a list of records nor names with their labels")
    columns = list(dict.fromkeys(name for row in raw for name in row))
    return Table(url, columns, [[row.get(name) for name in columns] for row in raw])


def _parquet(url: str, data: bytes) -> Table:
    file = pq.ParquetFile(BytesIO(data))
    schema = file.schema_arrow
    # Pictures have readers of their own; here they would only fill the memory.
    names = [own.name for own in schema if not pa.types.is_binary(own.type) and not pa.types.is_large_binary(own.type)]
    if len(set(names)) < len(names):
        raise DatasetError(f"the table of labels {url} has a column twice; take one out, or rename it")
    table = file.read(columns=names)
    columns = [table.column(name).to_pylist() for name in table.column_names]
    return Table(url, table.column_names, list(zip(*columns, strict=True)), [], class_names_of(schema))


def class_names_of(schema: pa.Schema, column: str | None = None) -> list[str] | None:
    """Names of the numbers in a column of classes, where Hugging Face's datasets have written them into the file.

    Args:
        schema: of a Parquet file.
        column: which column; None takes the first with names.
    """
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return None
    for name, feature in features.items() if isinstance(features, dict) else ():
        inner = feature
        while isinstance(inner, dict) and "names" not in inner:
            inner = inner.get("feature")
            inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict) and column in (None, name) and isinstance(inner["names"], list):
            return [str(word) for word in inner["names"]]
    return None
