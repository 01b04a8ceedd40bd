"""Reader of COCO's json files: instances, panoptic segments, or labels alone."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.labels import IGNORE
from fmwsss.jobs.images.places import coco_place
from fmwsss.jobs.images.readers.base import DatasetError, Listing, Source, counted, id_of, listing_of
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.image_files import Finder, find_images
from fmwsss.jobs.images.readers.json_stream import JsonStream, text_of

FIRST_KEYS = ('"images"', '"annotations"', '"categories"', '"info"', '"licenses"')
NUM_BYTES = 4096  # by which a json is known


@dataclass
class _Json:
    """What is kept of a json: of an annotation five numbers, whatever it is as text."""

    images: list[tuple[int, str, int, int]] = field(default_factory=list)  # id, file name, height, width
    categories: dict[int, str] = field(default_factory=dict)
    image_of: array = field(default_factory=lambda: array("q"))
    category_of: array = field(default_factory=lambda: array("q"))
    offset_of: array = field(default_factory=lambda: array("q"))
    num_bytes_of: array = field(default_factory=lambda: array("q"))  # 0: it has no outline
    is_crowd: array = field(default_factory=lambda: array("b"))
    has_annotations: bool = False


def is_coco(url: str) -> bool:
    """Whether a json is one of COCO's, by its beginning."""
    parent, _, name = url.rpartition("/")
    head = Folder(parent or ".").read_range(name, 0, NUM_BYTES).decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    return head.startswith("{") and head[1:].lstrip().startswith(FIRST_KEYS)


def categories_of(url: str) -> list[str]:
    """Names of the categories of a json, in the order of their numbers; raises as `read_coco`."""
    return [name for _, name in sorted(_read(url).categories.items())]


def read_coco(images_url: str, annotations_url: str, names: ClassNames, with_truth: bool = True) -> Listing:
    """A folder of images and a COCO json; categories are classes by their names, whatever their numbers.

    Labels are the categories of an image's annotations, except crowds, which are neither labels nor background: in the
    ground truth they are ignored. Categories that are no classes of the run are background, and told. The ground truth
    is painted, where it is read, from the large to the small.

    Args:
        images_url: the folder; sub-folders count, in the folder and in the json's file names.
        annotations_url: the json, a path or URL; it is read record by record.
        names: the classes of the run.
        with_truth: whether outlines are ground truth.

    Raises:
        DatasetError: no such json, or none of its images is in the folder, or none of its categories is a class.
    """
    annotations_url = _absolute(annotations_url)
    read = _read(annotations_url)
    if not read.has_annotations:
        raise DatasetError(f"{annotations_url} has no annotations: it says of no image what it shows")
    classes = {number: names.find(name) for number, name in read.categories.items()}
    foreign = [name for number, name in read.categories.items() if not classes[number]]
    if not any(classes.values()):
        raise DatasetError(
            f"no category of {annotations_url} is a class of this run: they are {', '.join(foreign[:8])}, and classes "
            f"are {', '.join(names.classes[:8])}"
        )
    files = find_images(images_url)
    finder, ids = Finder(files), files.ids()
    order = np.argsort(np.frombuffer(read.image_of, np.int64), kind="stable") if read.image_of else np.zeros(0, int)
    sorted_images = np.frombuffer(read.image_of, np.int64)[order] if read.image_of else np.zeros(0, int)
    sources: dict[str, Source] = {}
    absent, strays, seen = [], [], Counter(number for number, *_ in read.images)
    twice = [number for number, count in seen.items() if count > 1]
    if twice:
        raise DatasetError(f"{annotations_url} has the image id {twice[0]} twice: its annotations belong to either")
    for number, file_name, height, width in read.images:
        try:
            file, problem = finder.find(file_name), None
        except DatasetError as error:
            file, problem = None, f"the file name {file_name} {error}"
        if file is None and problem is None:
            absent.append(file_name)
            continue
        if file is None:
            strays.append(Source(id_of(file_name), files.url(file_name), (), problem=problem))
            continue
        begin, end = np.searchsorted(sorted_images, [number, number + 1])
        source = _source(
            read, order[begin:end], classes, names, annotations_url if with_truth else None, (height, width)
        )
        if file in sources:
            strays.append(Source(ids[file], files.url(file), (), problem=f"{annotations_url} has its file name twice"))
            continue
        sources[file] = Source(ids[file], files.url(file), source.classes, source.truth_url)
    if not sources and not strays:
        raise DatasetError(f"none of the {len(read.images)} images of {annotations_url} is in {files.folder.url}")
    notes = [*files.notes]
    if foreign:
        notes.append(f"{counted(foreign, 'name')} of categories that are no classes of this run, left out")
    if absent:
        notes.append(f"{counted(absent, 'image')} of {annotations_url} not in {files.folder.url}, left out")
    unlisted = [name for name in files.names if name not in sources]
    if unlisted:
        notes.append(f"{counted(unlisted, 'image')} in {files.folder.url} not in {annotations_url}, left out")
    if num_crowds := sum(read.is_crowd):
        notes.append(f"{num_crowds} crowds are no labels, and ignored in the ground truth")
    notes += [*finder.notes(), *names.notes()]
    return listing_of([*sources.values(), *strays], annotations_url, notes, names.questions())


def _source(
    read: _Json, rows: Any, classes: Mapping[int, str | None], names: ClassNames, url: str | None, size: tuple[int, int]
) -> Source:
    """Labels and ground truth of one image by the rows of its annotations."""
    labels: dict[str, None] = {}
    instances = []
    is_outlined = True
    for row in rows.tolist():
        name, is_crowd = classes.get(read.category_of[row]), bool(read.is_crowd[row])
        if name is None:
            continue
        if not is_crowd:
            labels[name] = None
            is_outlined &= read.num_bytes_of[row] > 0
        if read.num_bytes_of[row]:
            label = IGNORE if is_crowd else names.classes.index(name) + 1
            instances.append((read.offset_of[row], read.num_bytes_of[row], label))
    # Boxes alone are no ground truth; and of an image without annotations nobody knows that there is nothing.
    truth = coco_place(url, size, instances) if url and labels and is_outlined else None
    return Source("", "", tuple(sorted(labels, key=names.classes.index)), truth)


def _read(url: str) -> _Json:
    """Reads a json record by record.

    Raises:
        DatasetError: it is no JSON, or has no such records.
    """
    parent, _, name = _absolute(url).rpartition("/")
    read = _Json()
    with Folder(parent).open(name) as file:
        try:
            stream = JsonStream(file)
            for key in stream.keys():  # noqa: SIM118 - a stream is no dictionary
                if not stream.is_list():
                    stream.value()
                    continue
                for record, offset, num_bytes in stream.records():
                    _take(read, key, record, offset, num_bytes)
                read.has_annotations |= key == "annotations"
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, KeyError):
                error = ValueError(f"a record has no {error}")
            raise DatasetError(f"{url} can't be read as COCO's json: {error}") from None
    if not read.images:
        raise DatasetError(f"{url} has no images")
    return read


def _absolute(url: str) -> str:
    """The path or URL as a worker in another folder finds it."""
    parent, slash, name = url.rpartition("/")
    return f"{Folder(parent or slash or '.').url}/{name}"


def _take(read: _Json, key: str, record: Any, offset: int, num_bytes: int) -> None:
    if key == "images":
        height, width = (int(record.get(side) or 0) for side in ("height", "width"))
        read.images.append((int(record["id"]), text_of(str(record["file_name"])), height, width))
    elif key == "categories":
        read.categories[int(record["id"])] = text_of(str(record["name"]))
    elif key == "annotations":
        for segment in record.get("segments_info", [record]):  # panoptic json: all segments of an image
            read.image_of.append(int(record["image_id"]))
            read.category_of.append(int(segment["category_id"]))
            read.is_crowd.append(bool(segment.get("iscrowd")))
            read.offset_of.append(offset)
            read.num_bytes_of.append(num_bytes if segment.get("segmentation") else 0)
