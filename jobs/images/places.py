"""Where an image or its ground truth is, when it is no file of its own: in a tar, in a Parquet table, in a COCO json.

A place is text: a path or URL, or `tar:OFFSET:LENGTH:URL`, `parquet:ROW:COLUMN:URL`, `coco:SIZE:INSTANCES:URL`,
`toy:SEED`. Paths are absolute, so none is mistaken for another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.parquet as pq

from fmwsss.cluster.storage.folder import FileError, Folder, StorageError, read_url
from fmwsss.jobs.images.readers.base import DatasetError

TAR, PARQUET, COCO, TOY = "tar:", "parquet:", "coco:", "toy:"
NUM_OPEN = 4  # Parquet files whose footers are kept


def tar_place(url: str, offset: int, num_bytes: int) -> str:
    """A member of a tar.

    Args:
        url: of the tar.
        offset: of the member's first byte, in the tar without compression.
        num_bytes: of the member.

    Returns:
        The place.
    """
    return f"{TAR}{offset}:{num_bytes}:{url}"


def parquet_place(url: str, row: int, column: str) -> str:
    """A cell of a Parquet file.

    Args:
        url: of the file.
        row: counted from 0 through the whole file.
        column: that holds bytes, or a record with `bytes`.

    Returns:
        The place.
    """
    return f"{PARQUET}{row}:{quote(column, safe='')}:{url}"


def coco_place(url: str, size: tuple[int, int], instances: Sequence[tuple[int, int, int]]) -> str:
    """The annotations of one image in a COCO json.

    Args:
        url: of the json.
        size: height and width in pixels that the json gives the image; (0, 0) where it gives none.
        instances: offset, number of bytes and class index of each annotation; 255 for what is ignored.
    """
    told = ",".join(f"{offset}+{num_bytes}={label}" for offset, num_bytes, label in instances)
    return f"{COCO}{size[0]}x{size[1]}:{told}:{url}"


def file_of(place: str) -> str:
    """The path or URL of the file that a place is in."""
    return place.split(":", 3)[3] if place.startswith((TAR, PARQUET, COCO)) and place.count(":") >= 3 else place


def read_place(place: str, max_bytes: int | None = None) -> bytes:
    """The bytes of an encoded image.

    Args:
        place: a path or URL, `tar:` or `parquet:`.
        max_bytes: that an image may have; None for any number.

    Returns:
        The bytes.

    Raises:
        FileError: there is none, or more than `max_bytes`.
        StorageError: it can't be read.
    """
    if place.startswith(TAR):
        _, offset, num_bytes, url = place.split(":", 3)
        if max_bytes is not None and int(num_bytes) > max_bytes:
            raise FileError(f"its {num_bytes} bytes in {url} are more than the {max_bytes} that are allowed")
        folder, name = _folder_of(url)
        data = folder.read_range(name, int(offset), int(num_bytes))
        if len(data) < int(num_bytes):
            raise FileError(f"{url} ends in the middle of it")
        return data
    if place.startswith(PARQUET):
        _, row, column, url = place.split(":", 3)
        data = _cell(url, int(row), unquote(column))
        if max_bytes is not None and len(data) > max_bytes:
            raise FileError(f"its {len(data)} bytes in {url} are more than the {max_bytes} that are allowed")
        return data
    return read_url(place, max_bytes)


def read_instances(place: str) -> tuple[bytes, tuple[int, int]]:
    """The annotations of a `coco:` place, as the decoder's `instances` takes them, and the size in the json.

    Returns:
        JSON: a list of records with `label` and `segmentation`; height and width, (0, 0) where the json has none.

    Raises:
        DatasetError: the json has changed since it was listed.
    """
    _, size, told, url = place.split(":", 3)
    folder, name = _folder_of(url)
    instances = []
    for word in filter(None, told.split(",")):
        where, _, label = word.partition("=")
        offset, _, num_bytes = where.partition("+")
        try:
            annotation = json.loads(folder.read_range(name, int(offset), int(num_bytes)))
        except ValueError as error:
            if isinstance(error, StorageError):
                raise
            raise DatasetError(f"{url} is no longer what was listed: start again from images") from None
        kept = {key: annotation.get(key) for key in ("segmentation", "bbox", "area")}
        instances.append({**kept, "label": int(label)})
    height, _, width = size.partition("x")
    return json.dumps(instances).encode(), (int(height), int(width))


def _folder_of(url: str) -> tuple[Folder, str]:
    parent, _, name = url.rpartition("/")
    return Folder(parent or "/"), name


@functools.lru_cache(NUM_OPEN)
def _parquet(url: str) -> tuple[pq.ParquetFile, tuple[int, ...]]:
    folder, name = _folder_of(url)
    file = pq.ParquetFile(folder.open(name))
    begins = [0]
    for index in range(file.num_row_groups):
        begins.append(begins[-1] + file.metadata.row_group(index).num_rows)
    return file, tuple(begins)


@functools.lru_cache(1)
def _row_group(url: str, group: int, column: str) -> Any:
    """Rows are asked for in their order: the group that one is in is read once."""
    return _parquet(url)[0].read_row_group(group, columns=[column]).column(column)


def _cell(url: str, row: int, column: str) -> bytes:
    begins = _parquet(url)[1]
    group = next((index for index in range(len(begins) - 1) if begins[index] <= row < begins[index + 1]), None)
    if group is None:
        raise DatasetError(f"{url} has no row {row} any more: start again from images")
    value = _row_group(url, group, column)[row - begins[group]].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not value:
        raise DatasetError(f"row {row} of {url} has no bytes in {column!r}")
    return bytes(value)
