"""Where the images, labels and truth of a dataset are: metadata only, no pixel is read here.

What is wrong with one image (no row of labels, no file, two of one id, an id that is no file name) stays with that
image as its `problem` and ends in the failures table; what is wrong with the whole dataset is a `DatasetError`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Folder, read_url
from jobs.config import FolderData, ToyData, UnlabelledData, VocData

IMAGE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
EXTENSIONS = {"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"}
SEPARATORS = ";|,"
TOY_SCHEME = "toy:"


class DatasetError(ValueError):
    """A dataset, or one image of it, that can't be used as it is; one line."""


@dataclass(frozen=True)
class Source:
    """One image of a dataset.

    Attributes:
        image_id: its name in the run, and in every file name that comes from it.
        image_url: path or URL of the encoded image, or `toy:<seed>`.
        classes: its labels; None where they are in `annotation_url` or else are the classes of the truth.
        truth_url: its label PNG, for evaluation only; None where there is none.
        annotation_url: its VOC annotation (XML), where the labels are in one.
        problem: what makes it a failure already.
    """

    image_id: str
    image_url: str
    classes: tuple[str, ...] | None
    truth_url: str | None = None
    annotation_url: str | None = None
    problem: str | None = None


SOURCES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_url", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("truth_url", pa.string()),
        ("annotation_url", pa.string()),
        ("problem", pa.string()),
    ]
)


def sources_of(data: ToyData | VocData | FolderData | UnlabelledData) -> list[Source]:
    """The images of the dataset of a run file, each id once without a problem, in a fixed order.

    Raises:
        DatasetError: there are none, or the split or the table of labels is missing or has no such columns.
        StorageError: a folder can't be read.
    """
    if data.kind == "toy":
        return draw_toy(data.num_images, data.first_seed)
    if data.kind == "voc":
        sources = read_voc(data.root, data.split)
    elif data.kind == "unlabelled":
        sources = list_images(data.images, data.truth)
    else:
        sources = read_folder(data.images, data.labels, data.truth)
    return sources[: data.max_images]


def draw_toy(num_images: int, first_seed: int) -> list[Source]:
    """Scenes of the toy world by their seeds; they are drawn where they are read."""
    urls = [(seed, f"{TOY_SCHEME}{seed}") for seed in range(first_seed, first_seed + num_images)]
    return _checked([Source(f"toy-{seed:06d}", url, None, url) for seed, url in urls], "the toy world")


def read_voc(root: str, split: str) -> list[Source]:
    """A PASCAL VOC folder: JPEGImages, ImageSets/Segmentation (or else Main), Annotations, SegmentationClass.

    Labels come from the annotations, or else are the classes of the masks.
    """
    folder = Folder(root)
    for sets in ("ImageSets/Segmentation", "ImageSets/Main"):
        splits = folder.child(sets).list()
        if f"{split}.txt" in splits:
            lines = folder.child(sets).read(f"{split}.txt").decode().splitlines()
            break
        if splits:
            known = ", ".join(name.removesuffix(".txt") for name in splits[:10])
            raise DatasetError(f"there is no split {split!r} in {folder.url}/{sets}; there are {known}")
    else:
        raise DatasetError(f"{folder.url} is no VOC folder: it has no ImageSets/Segmentation/{split}.txt")
    masks = _stems(folder.child("SegmentationClass"), {"png"})
    annotations = _stems(folder.child("Annotations"), {"xml"})
    sources = []
    for image_id in (line.split()[0] for line in lines if line.strip()):
        source = Source(
            image_id,
            f"{folder.url}/JPEGImages/{image_id}.jpg",
            None,
            _url(folder.child("SegmentationClass"), masks.get(image_id)),
            _url(folder.child("Annotations"), annotations.get(image_id)),
        )
        if source.truth_url is None and source.annotation_url is None:
            source = replace(source, problem="has no labels: there is neither an annotation nor a mask")
        sources.append(source)
    return _checked(sources, f"split {split} of {folder.url}")


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


def _checked(sources: Sequence[Source], where: str) -> list[Source]:
    if not sources:
        raise DatasetError(f"there are no images in {where}")
    seen: set[str] = set()
    checked = []
    for source in sources:
        problem = source.problem
        if not IMAGE_ID.fullmatch(source.image_id):
            problem = "its id is no file name: letters, digits, `.`, `_` and `-` are allowed, and no `.` in front"
        elif source.image_id in seen and problem is None:
            problem = "its id occurs more than once: the first is taken"
        elif problem is None:
            seen.add(source.image_id)
        checked.append(replace(source, problem=problem))
    return checked


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


def _stems(folder: Folder, extensions: set[str]) -> dict[str, str]:
    names = [name for name in folder.list() if _extension(name) in extensions and "/" not in name]
    return {_stem(name): name for name in names}


def _url(folder: Folder, name: str | None) -> str | None:
    return None if name is None else f"{folder.url}/{name}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
