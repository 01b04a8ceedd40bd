"""Reader of YOLO's layout: a YAML file with names, images, and a text file of numbers beside each image's folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

from fmwsss.cluster.storage.folder import FileError, Folder, read_url
from fmwsss.jobs.images.readers.base import DatasetError, Listing, Source, counted, id_of, listing_of, stem_of
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.image_files import find_images
from fmwsss.jobs.images.readers.table_files import text_of

NUM_READERS = 16


def read_yolo(data_url: str, split: str, names: ClassNames) -> Listing:
    """The images of a set, labelled with the classes of their boxes or outlines; classes are found by their names.

    Args:
        data_url: the YAML file: `path`, `train`, `val`, `test` (folders, lists of folders or text files of paths), and
            `names` (a list, or numbers with names).
        split: which of its sets.
        names: the classes of the run.

    Raises:
        DatasetError: the file says no such set, or no name of it is a class.
    """
    told, home = _read_yaml(data_url), data_url.rpartition("/")[0] or "."
    classes = _classes(told.get("names"), data_url)
    found = {number: names.find(name) for number, name in classes.items()}
    foreign = [name for number, name in classes.items() if not found[number]]
    if not any(found.values()):
        raise DatasetError(f"no name in {data_url} is a class of this run: they are {', '.join(foreign[:8])}")
    if not told.get(split):
        there = ", ".join(key for key in ("train", "val", "test") if told.get(key)) or "none"
        raise DatasetError(f"{data_url} has no set {split!r}; it has {there}")
    root = _root(str(told.get("path") or "."), home)
    places = told[split] if isinstance(told[split], list) else [told[split]]
    images = [pair for place in places for pair in _images(str(place), root)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        texts = list(pool.map(_label_text, [url for _, url in images]))
    sources, strange = [], 0
    for (name, url), text in zip(images, texts, strict=True):
        labels, problem = [], None
        for line in filter(None, map(str.split, text.splitlines())):
            number = int(line[0]) if line[0].isdecimal() else -1
            if number not in classes:
                problem = f"its labels have the class {line[0]!r}, which {data_url} has no name for"
            elif own := found[number]:
                labels.append(own)
            else:
                strange += 1
        sources.append(Source(id_of(stem_of(name)), url, names.read(labels), problem=problem))
    notes = names.notes()
    if foreign:
        told_of = counted(foreign, "name")
        notes.append(f"{told_of} in {data_url} are no classes of this run: background ({strange} boxes)")
    return listing_of(sources, f"set {split} of {data_url}", notes, names.questions())


def names_of(data_url: str) -> list[str]:
    """The names of a YAML file in the order of their numbers; raises as `read_yolo`."""
    return [name for _, name in sorted(_classes(_read_yaml(data_url).get("names"), data_url).items())]


def _read_yaml(url: str) -> dict[str, Any]:
    try:
        told = yaml.safe_load(text_of(read_url(url))[0])
    except (yaml.YAMLError, RecursionError) as error:
        raise DatasetError(f"{url} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(told, dict):
        raise DatasetError(f"{url} has no keys: it is no dataset of YOLO")
    return told


def _classes(told: Any, url: str) -> dict[int, str]:
    if isinstance(told, list):
        told = dict(enumerate(told))
    if not isinstance(told, dict) or not told or not all(str(number).isdecimal() for number in told):
        raise DatasetError(f"{url} has no `names`, a list of classes or numbers with classes")
    return {int(number): str(name) for number, name in told.items()}


def _root(path: str, home: str) -> str:
    """The folder that a YAML file calls `path`: absolute, or below its own; one of another machine is its own."""
    below = f"{home}/{path}" if not path.startswith("/") and "://" not in path else path
    return below if Folder(below).list() else home


def _images(place: str, root: str) -> list[tuple[str, str]]:
    """Names and URLs of the images of one entry: of a folder, or of a text file of paths."""
    below = place if place.startswith("/") or "://" in place else f"{root}/{place.removeprefix('./')}"
    if not place.endswith(".txt"):
        if not Folder(below).list() and place.startswith("../"):
            below = f"{root}/{place.removeprefix('../')}"  # as many exports have it, though it is not so
        files = find_images(below)
        return [(name, files.url(name)) for name in files.names]
    parent, _, name = below.rpartition("/")
    lines = [line.strip() for line in text_of(Folder(parent).read(name))[0].splitlines() if line.strip()]
    paths = [line if line.startswith("/") or "://" in line else f"{root}/{line.removeprefix('./')}" for line in lines]
    return [(path.rpartition("/images/")[2] or path.rpartition("/")[2], Folder(path).url) for path in paths]


def _label_text(image_url: str) -> str:
    """The text of an image's labels: `/images/` in its path is `/labels/`; none where there is no such file."""
    before, marker, after = image_url.rpartition("/images/")
    label = f"{before}/labels/{stem_of(after)}.txt" if marker else f"{stem_of(image_url)}.txt"
    try:
        return text_of(read_url(label))[0]
    except FileError:
        return ""
