"""Where the images, labels and truth of a dataset are: metadata only, no pixel is read here.

What is wrong with one image (no row of labels, no file, two of one id, an id that is no file name) stays with that
image as its `problem` and ends in the failures table; what is wrong with the whole dataset is a `DatasetError`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO, StringIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmwsss.cluster.storage.folder import Folder, read_url
from fmwsss.jobs.images.readers.base import EXTENSIONS, DatasetError, Source, _checked, _extension, _stem, _stems, _url

SEPARATORS = ";|,"


def read_folder(images_url: str, labels_url: str, truth_url: str | None = None) -> list[Source]:
    """A folder of images and a table (CSV or Parquet) with the columns `image_id` and `classes`.

    An id is a file name with or without its extension. Classes are a list, or text separated by `;`, `|` or `,`.
    Truth is a folder of label PNGs named by id.
    """
    images = Folder(images_url)
    files = [name for name in images.list() if _extension(name) in EXTENSIONS and "/" not in name]
    if not files:
        raise DatasetError(f"there are no images in {images.url}")
    by_stem: dict[str, str] = {}
    for name in files:
        by_stem.setdefault(_stem(name), name)
    by_name = {name: name for name in files}
    truth = Folder(truth_url) if truth_url else None
    masks = _stems(truth, {"png"}) if truth else {}
    sources, used = [], set()
    for row in _label_rows(labels_url):
        given = "" if row["image_id"] is None else str(row["image_id"]).strip()
        file = by_stem.get(given) or by_name.get(given)
        image_id = _stem(file) if file else given
        source = Source(image_id, _url(images, file) or "", ())
        try:
            source = replace(source, classes=_labels(row))
        except DatasetError as error:
            source = replace(source, problem=str(error))
        if file is None:
            source = replace(source, problem=f"has labels but no image in {images.url}")
        elif truth:
            source = replace(source, truth_url=_url(truth, masks.get(image_id)))
        used.add(file)
        sources.append(source)
    for file in files:
        if file not in used:
            problem = f"has no row in the table of labels {labels_url}"
            if by_stem[_stem(file)] != file:
                problem = f"has the same id as {by_stem[_stem(file)]}: {file} is left out"
            sources.append(Source(_stem(file), _url(images, file) or "", (), problem=problem))
    return _checked(sources, labels_url)


def list_images(images_url: str, truth_url: str | None = None) -> list[Source]:
    """A folder of images, and perhaps one of label PNGs named by id; there are no labels, and none are needed."""
    images = Folder(images_url)
    files = [name for name in images.list() if _extension(name) in EXTENSIONS and "/" not in name]
    if not files:
        raise DatasetError(f"there are no images in {images.url}")
    truth = Folder(truth_url) if truth_url else None
    masks = _stems(truth, {"png"}) if truth else {}
    sources = [
        Source(_stem(name), f"{images.url}/{name}", (), _url(truth, masks.get(_stem(name))) if truth else None)
        for name in files
    ]
    return _checked(sources, images.url)


def _label_rows(url: str) -> list[Mapping[Any, Any]]:
    kind = _extension(url)
    if kind not in ("csv", "parquet"):
        raise DatasetError(f"the table of labels {url} is neither .csv nor .parquet")
    data = read_url(url)
    rows: Any
    try:
        if kind == "csv":
            reader = csv.DictReader(StringIO(data.decode("utf-8-sig"), newline=""))
            rows, columns = list(reader), reader.fieldnames or []
        else:
            columns = pq.read_schema(BytesIO(data)).names
            wanted = [name for name in ("image_id", "classes") if name in columns]
            rows = pq.read_table(BytesIO(data), columns=wanted).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"the table of labels {url} can't be read as {kind}") from error
    for name in ("image_id", "classes"):
        if name not in columns:
            raise DatasetError(
                f"the table of labels {url} has no column {name!r}; it has {', '.join(columns) or 'none'}"
            )
    return rows


def _labels(row: Mapping[Any, Any]) -> tuple[str, ...]:
    if None in row:
        raise DatasetError("its row of labels has more cells than the header; put several classes in quotes")
    value = row["classes"]
    if value is None:
        return ()
    if isinstance(value, str):
        separator = next((mark for mark in SEPARATORS if mark in value), SEPARATORS[0])
        value = value.split(separator)
    return tuple(name for name in (str(part).strip() for part in value) if name)
