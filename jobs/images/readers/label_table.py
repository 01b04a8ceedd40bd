"""What a table says of images: long, wide, one-hot or counts; names, numbers or lists; read strictly or refused."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmwsss.jobs.images.readers.base import DatasetError
from fmwsss.jobs.images.readers.class_names import ClassNames, clean
from fmwsss.jobs.images.readers.table_files import Table, column_key

# Names of columns in the order in which they are believed (see `column_key`).
IMAGE_COLUMNS = (
    "imageid", "image", "imagename", "imagepath", "imagefile", "imagefilename", "imagefilepath", "filename", "filepath",
    "filenames", "file", "path", "img", "imgid", "imgname", "imgpath", "photo", "picture", "key", "id", "name", "url",
    "imageurl",
)  # fmt: skip
CLASS_COLUMNS = (
    "classes", "class", "labels", "label", "categories", "category", "classname", "classnames", "labelname",
    "labelnames", "categoryname", "tags", "tag", "objects", "object", "choice", "choices", "target", "targets",
)  # fmt: skip
# Beside one label a row, how often or how sure; 0 says that the label is not there.
AMOUNT_COLUMNS = ["count", "counts", "value", "present", "presence", "n", "num", "confidence"]
EMPTY = frozenset({"", "null", "none", "na", "n/a", "nan", "-", "[]", "{}"})
CELL_SEPARATORS = (";", "|", ",", "；", "，", "、", "\n")
TRUE, FALSE = frozenset({"1", "true", "yes", "y", "x", "t"}), frozenset({"", "0", "false", "no", "n", "f"})


@dataclass
class Labels:
    """The labels of a table.

    Attributes:
        of: for each image, as the table names it, its labels; several rows of one image are joined.
        problems: what is wrong with the rows of an image.
        notes: what was guessed, a line each.
        questions: what only the user can know, a line each.
    """

    of: dict[str, dict[str, None]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)


def labels_of(table: Table, names: ClassNames, split: str | None = None, first_index: int | None = None) -> Labels:
    """The labels of every image of a table.

    Args:
        table: as it was read.
        names: the classes of the run.
        split: take only the rows whose column `split` says so, where that column knows this word.
        first_index: what the first class is called where labels are numbers; None where nobody has said so.

    Raises:
        DatasetError: no column of images or of labels; numbers that could be counted from 0 or from 1.
    """
    keys = [column_key(name) for name in table.columns]
    image = next((keys.index(key) for key in IMAGE_COLUMNS if key in keys), None)
    if image is None:
        raise DatasetError(f"the table of labels {table.url} has no column 'image_id'; it has {_listed(table.columns)}")
    found = Labels(notes=list(table.notes))
    read, used = _reader_of_rows(table, keys, image, names, found, first_index)
    rows = _rows_of_split(table, keys, split, found, used)
    num_rows: dict[str, int] = {}
    for row in rows:
        given = _name_of(row[image] if image < len(row) else None)
        if not given:
            found.problems.setdefault("", "its row of labels names no image")
            continue
        num_rows[given] = num_rows.get(given, 0) + 1
        labels = found.of.setdefault(given, {})
        if len(row) > len(table.columns):
            found.problems[given] = "its row of labels has more cells than the header; put several classes in quotes"
            continue
        try:
            labels.update(dict.fromkeys(read(row)))
        except DatasetError as error:
            found.problems[given] = str(error)
    joined = [given for given, count in num_rows.items() if count > 1]
    if joined:
        found.notes.append(f"{len(joined)} images have several rows ({joined[0]}, say): their labels are joined")
    idle = [name for index, name in enumerate(table.columns) if index not in used | {image} and name]
    if idle:
        found.notes.append(f"columns that are not looked at: {_listed(idle)}")
    return found


def columns_of_classes(table: Table) -> list[str]:
    """Columns beside the image's that say yes or no in every row: classes, where nobody has named them yet."""
    found = []
    for index, name in enumerate(table.columns):
        cells = [row[index] for row in table.rows if index < len(row)]
        words = {str(cell).strip().casefold() for cell in cells if cell is not None}
        are_numbers = all(word.lstrip("-").isdecimal() for word in words if word)
        if column_key(name) not in IMAGE_COLUMNS and words - {""} and (are_numbers or words <= TRUE | FALSE):
            found.append(str(name))
    return found


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(str, columns[:20])) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "") or "none"


def _name_of(value: Any) -> str:
    """An image as a cell names it; `{"path": ...}` is Hugging Face's way."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("file_name")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _reader_of_rows(
    table: Table, keys: list[str], image: int, names: ClassNames, found: Labels, first_index: int | None
) -> tuple[Callable[[Sequence[Any]], list[str]], set[int]]:
    """How the labels of a row are read, and the columns that it looks at."""
    one = next((keys.index(key) for key in CLASS_COLUMNS if key in keys and keys.index(key) != image), None)
    several = [
        index
        for index, key in enumerate(keys)
        if index != image and re.fullmatch(rf"({'|'.join(CLASS_COLUMNS)})\d+", key)
    ]
    if one is not None:
        return _reader_of_lists(table, keys, [one, *several], names, found, first_index)
    if several:
        return _reader_of_lists(table, keys, several, names, found, first_index)
    hot = {index: own for index, name in enumerate(table.columns) if index != image and (own := names.find(str(name)))}
    if names.classes and hot:
        found.notes.append(f"{table.url}: one column a class, for {len(hot)} of {len(names.classes)} classes")
        return lambda row: [
            own for index, own in hot.items() if _is_there(row[index] if index < len(row) else None)
        ], set(hot)
    classes = f" nor one for any of the classes {', '.join(names.classes[:5])}" if names.classes else ""
    raise DatasetError(
        f"the table of labels {table.url} has no column 'classes'{classes}; it has {_listed(table.columns)}"
    )


def _reader_of_lists(
    table: Table, keys: list[str], columns: list[int], names: ClassNames, found: Labels, first_index: int | None
) -> tuple[Callable[[Sequence[Any]], list[str]], set[int]]:
    if len(columns) == 1 and _are_vectors([row[columns[0]] for row in table.rows if columns[0] < len(row)], names):
        found.notes.append(
            f"{table.url}: a list of {len(names.classes)} zeros and ones an image, in the order of the classes"
        )
        one = columns[0]
        return lambda row: [own for own, is_there in zip(names.classes, row[one], strict=True) if is_there], {one}
    cells: list[str] = []
    for row in table.rows:
        with contextlib.suppress(DatasetError):  # it is told with the row that it is in
            cells += [part for index in columns if index < len(row) for part in _parts(row[index], names)]
    numbers = _names_of_numbers(table, cells, names, found, first_index)
    amount = next((keys.index(key) for key in AMOUNT_COLUMNS if key in keys and keys.index(key) not in columns), None)
    if amount is not None and not all(_is_amount(row[amount]) for row in table.rows if amount < len(row)):
        amount = None
    zeros = amount is not None and any(_number(row[amount]) == 0 for row in table.rows if amount < len(row))
    if amount is not None and zeros:
        found.notes.append(f"{table.url}: labels whose {table.columns[amount]!r} is 0 are not there")

    def read(row: Sequence[Any]) -> list[str]:
        if amount is not None and amount < len(row) and _number(row[amount]) == 0:
            return []
        given = [part for index in columns if index < len(row) for part in _parts(row[index], names)]
        return list(names.read(numbers.get(part, part) for part in given))

    return read, {*columns, *([amount] if zeros and amount is not None else [])}


def _are_vectors(cells: Sequence[Any], names: ClassNames) -> bool:
    """Whether each cell has a zero or a one for each class."""
    size = len(names.classes)
    are_lists = size > 1 and bool(cells) and all(isinstance(cell, list) and len(cell) == size for cell in cells)
    return are_lists and all(isinstance(value, int | float) and value in (0, 1) for cell in cells for value in cell)


def _rows_of_split(
    table: Table, keys: list[str], split: str | None, found: Labels, used: set[int]
) -> Sequence[Sequence[Any]]:
    """The rows of a split, where the table has a column of splits that knows its name."""
    column = next((keys.index(key) for key in ("split", "subset", "partition") if key in keys), None)
    if column is None or column in used:
        return table.rows
    words = sorted({str(row[column]).strip() for row in table.rows if column < len(row) and row[column] is not None})
    if split in words:
        used.add(column)
        rows = [row for row in table.rows if column < len(row) and str(row[column]).strip() == split]
        found.notes.append(f"{table.url}: of split {split!r} {len(rows)} of {len(table.rows)} rows are taken")
        return rows
    if len(words) > 1:
        name = table.columns[column]
        found.questions.append(
            f"all rows are taken, whatever {name!r} says ({_listed(words)}): `dataset.split: {words[0]}` takes only "
            "those"
        )
    return table.rows


def _parts(cell: Any, names: ClassNames) -> list[str]:
    """The labels in one cell, as they are written.

    Raises:
        DatasetError: the cell is something else than labels.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return []
    if isinstance(cell, bool):
        raise DatasetError(f"its labels are {cell}: true or false is no class")
    if isinstance(cell, int | float):
        return [str(int(cell)) if float(cell).is_integer() else str(cell)]
    if isinstance(cell, Mapping):
        inner = next((key for key in cell if key == "choices" or column_key(key) in CLASS_COLUMNS), None)
        if inner is not None and names.find(str(inner)) not in names.classes:
            return _parts(cell[inner], names)
        if any(isinstance(value, str | list | dict) for value in cell.values()):
            raise DatasetError(f"its labels are a record of {_listed(list(cell))}, which can't be read")
        return [str(name) for name, value in cell.items() if _is_there(value)]
    if isinstance(cell, list | tuple):
        if cell and all(isinstance(pair, tuple) and len(pair) == 2 for pair in cell):  # an Arrow map
            return _parts(dict(cell), names)
        return [part for value in cell for part in ([value] if isinstance(value, str) else _parts(value, names))]
    return _words(str(cell), names)


def _words(text: str, names: ClassNames) -> list[str]:
    text = clean(text) if "\n" not in text.strip() else text.strip()
    if names.classes and names.find(text):
        return [text]
    if text.casefold() in EMPTY:
        return []
    if text[0] in "[({" and text[-1] in "])}":
        for parse in (json.loads, ast.literal_eval):
            try:
                return _parts(parse(text), names)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if "\n" in text and "," in text:
        raise DatasetError("its labels go over several lines of the table: a quote is not closed")
    for mark in CELL_SEPARATORS:  # the one by which all are classes; else the first that there is
        parts = [part for word in text.split(mark) if (part := clean(word))]
        if mark in text and names.classes and all(map(names.find, parts)):
            return parts
    mark = next((mark for mark in CELL_SEPARATORS if mark in text), None)
    parts = [part for word in text.split(mark) if (part := clean(word))] if mark else [text]
    if mark is None and names.classes and " " in text and all(map(names.find, text.split())):
        return text.split()
    return [part for part in parts if part.casefold() not in EMPTY or names.find(part) in names.classes]


def _names_of_numbers(
    table: Table, cells: list[str], names: ClassNames, found: Labels, first_index: int | None
) -> dict[str, str]:
    """Classes for labels that are all numbers; empty where they are names.

    Raises:
        DatasetError: they could be counted from 0 or from 1, or are too large.
    """
    words = set(cells)
    if not words or not all(word.isascii() and word.isdecimal() for word in words):
        return {}
    if names.classes and all(map(names.find, words)):
        return {}
    if table.class_names:
        known = dict(enumerate(table.class_names))
        return {word: known.get(int(word), word) for word in words}
    if not names.classes:
        return {}
    least, most = min(map(int, words)), max(map(int, words))
    where = f"the labels in {table.url} are numbers from {least} to {most}"
    if least == 0 and first_index != 0:
        raise DatasetError(
            f"{where}: is 0 the background or the first class? Write names, or say `dataset.first_index: 0`, by which "
            f"0 is {names.classes[0]!r}"
        )
    first = 1 if first_index is None else first_index
    if most - first >= len(names.classes):
        raise DatasetError(f"{where}, and there are {len(names.classes)} classes: write names")
    found.notes.append(f"{where}: they are taken as {first} for {names.classes[0]!r} and so on")
    return {word: names.classes[int(word) - first] for word in words}


def _is_there(value: Any) -> bool:
    """Whether a cell of a column for one class says that the class is there.

    Raises:
        DatasetError: it says something between yes and no.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in TRUE | FALSE:
        return value.strip().casefold() in TRUE
    number = _number(value)
    if number is None:
        raise DatasetError(f"its row has {value!r} for a class: write 1 or 0")
    if 0 < number < 1:
        raise DatasetError(f"its row has {number:g} for a class, which is neither yes nor no: write 1 or 0")
    return number > 0  # -1 is VOC's way to say no, and of counts any is yes


def _number(value: Any) -> float | None:
    try:
        number = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return 0.0 if math.isnan(number) else number


def _is_amount(value: Any) -> bool:
    """Whether a cell is a whole number: shares beside labels are not looked at."""
    number = _number(value) if value not in (None, "") else 1.0
    return number is not None and float(number).is_integer()
