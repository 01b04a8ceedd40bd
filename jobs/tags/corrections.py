"""What people say of tags: a table of classes that are there, and of classes that are not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fmwsss.cluster.storage.folder import read_url
from fmwsss.core.errors import InputError
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.label_table import FALSE, TRUE
from fmwsss.jobs.images.readers.table_files import column_key, read_table

COLUMNS = ("imageid", "class", "present")
Corrections = dict[str, dict[str, bool]]  # of each image, classes that are there or are not


def hash_of(url: str | None, classes: Sequence[str]) -> str | None:
    """sha256 of the table, or None where there is none; raises as `read_corrections`.

    Args:
        url: of the table.
        classes: of the run.
    """
    if url is None:
        return None
    read_corrections(url, classes)
    return hashlib.sha256(read_url(url)).hexdigest()


def read_corrections(url: str, classes: Sequence[str]) -> Corrections:
    """The corrections of a table; of several of one class and image the last holds.

    Args:
        url: of the table, with the columns `image_id`, `class` and `present`.
        classes: of the run.

    Raises:
        InputError: a column is missing, a class is none, or `present` is neither yes nor no; the row is named.
        StorageError: it can't be read.
    """
    table, names = read_table(url), ClassNames(classes)
    places = [column_key(name) for name in table.columns]
    if missing := [name for name in ("image_id", "class", "present") if column_key(name) not in places]:
        raise InputError(f"labels.corrections: {url} has no column {', '.join(missing)}")
    columns = [places.index(name) for name in COLUMNS]
    found: Corrections = {}
    for number, row in enumerate(table.rows, start=2):
        image_id, name, present = (str(row[column]).strip() if column < len(row) else "" for column in columns)
        own = names.find(name)
        if own is None:
            raise InputError(f"labels.corrections: {url}, row {number}: {name!r} is no class of the run")
        if present.casefold() not in TRUE | FALSE - {""}:
            raise InputError(f"labels.corrections: {url}, row {number}: `present` is 1 or 0, not {present!r}")
        found.setdefault(image_id, {})[own] = present.casefold() in TRUE
    return found
