"""`fmwsss init PHOTOS [LABELS]`: looks at what is there and writes a run file with comments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.core.errors import InputError
from fmwsss.core.vocabularies import COCO14, VOC12
from fmwsss.jobs.config.datasets import (
    ClassFoldersData,
    CocoData,
    FolderData,
    LabelledData,
    ParquetData,
    UnlabelledData,
    VocData,
    WebDatasetData,
    YoloData,
)  # fmt: skip
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.models import NO_CLASSES
from fmwsss.jobs.images import digest
from fmwsss.jobs.images.readers.base import DatasetError, extension_of
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.coco import categories_of, is_coco
from fmwsss.jobs.images.readers.image_files import Finder, find_images
from fmwsss.jobs.images.readers.label_table import columns_of_classes, labels_of
from fmwsss.jobs.images.readers.registry import read_dataset
from fmwsss.jobs.images.readers.table_files import read_table
from fmwsss.jobs.images.readers.yolo import names_of as yolo_names

TABLES = ("csv", "tsv", "jsonl", "json", "parquet")
MAX_CLASSES = 254
_TEMPLATE = """# Written by `fmwsss init`. Every key that is left out has its default: docs/run_file.md.
{digest}
run: {run}                 # everything is written there; a path or s3://bucket/...
dataset: {dataset}
{labels}{vocabulary}
clip: {{model: ViT-B-16-quickgelu, weights: openai}}   # or `factory: package.module:function`
sam: {{model: vit_h}}       # published weights, fetched once (`fmwsss fetch`); or `weights:` a path
max_failures: 1 %         # more end the run; one image may always fail
"""


_TAGGED = """labels: {from: clip}      # nobody has labelled them: CLIP says which of the classes each image shows
"""


def run(images: str, labels: str | None, output: str | None, classes: str | None = None) -> list[str]:
    """Looks at a folder of images and writes a run file for it.

    Args:
        images: the folder, or whatever holds the dataset: a root of VOC, a YAML file of YOLO, tars, Parquet files.
        labels: table or json of labels; None looks for it.
        output: where the run file goes; None names it after the folder.
        classes: names with commas between them, of images that nobody has labelled: CLIP tags them.

    Returns:
        lines for the user.

    Raises:
        ValueError: nothing tells what the images show, or there is such a run file already.
    """
    name = (Path(images.rstrip("/")).stem or "mine").replace(" ", "-")
    target = Path(output or f"{name}.yaml")
    if target.exists():
        raise InputError(f"{target} is there already; give another name with --output")
    if classes is not None:
        if labels is not None:
            raise InputError("--classes is of images without labels: give either a table of labels or the classes")
        data, names = _unlabelled(images, classes)
    else:
        data, names = look_at(images, labels)
    kept = [own for own in names if own.lower() not in NO_CLASSES]
    if not kept or len(kept) > MAX_CLASSES:
        raise InputError(f"{len(kept)} classes were found in the labels; a run has 1 to {MAX_CLASSES}")
    lines = digest.of_listing(read_dataset(data, kept, keep_unlabelled=classes is not None), kept)
    flow = {"default_flow_style": True, "allow_unicode": True, "width": 10**6, "sort_keys": False}
    told = {key: value for key, value in data.model_dump(exclude_defaults=True).items() if value is not None}
    text = _TEMPLATE.format(
        digest="\n".join(f"#   {' '.join(line.split())}" for line in lines),
        run=yaml.safe_dump(f"runs/{name}", **flow).removesuffix("\n...\n").strip(),
        dataset=yaml.safe_dump({"kind": data.kind, **told}, **flow).strip(),
        labels=_TAGGED if classes is not None else "",
        vocabulary=_vocabulary(kept, yaml.safe_dump(kept, **flow).strip()),
    )
    target.write_text(text, encoding="utf-8")
    try:
        load_config(str(target))
    except ValueError:
        target.unlink()
        raise
    return [*lines, f"wrote {target}: look at its classes, then", f"  fmwsss plan {target}", f"  fmwsss run {target}"]


def _unlabelled(images: str, classes: str) -> tuple[UnlabelledData, list[str]]:
    """A folder of images, and the classes to look for in them."""
    names = list(dict.fromkeys(name.strip() for name in classes.split(",") if name.strip()))
    if not names:
        raise InputError("--classes names no class; write them with commas between them: --classes person,horse")
    return UnlabelledData(kind="unlabelled", images=images), names


def _vocabulary(classes: list[str], text: str) -> str:
    """The section of the run file: a vocabulary whose words for CLIP are known, or a list of one's own."""
    for known in (VOC12, COCO14):
        if list(known.classes) == classes:
            return f"vocabulary: {known.name}         # its {len(classes)} classes, with words for CLIP"
    return (
        f"vocabulary:\n  classes: {text}\n"
        "  # prompts: [...]        # other words for CLIP, one for each class, where a name says little\n"
        "  # backgrounds: [...]    # words for what surrounds the classes; left out, those of VOC"
    )


def look_at(images: str, labels: str | None) -> tuple[LabelledData, list[str]]:
    """What kind of dataset this is, and its classes in the order of the run file.

    Args:
        images: a folder, or whatever else holds the dataset: a root of VOC, a YAML file of YOLO, tars, Parquet files.
        labels: table or json of labels; None looks for it.

    Returns:
        The section `dataset` of a run file; the names of the classes.

    Raises:
        DatasetError: nothing tells what the images show.
    """
    if labels is not None:
        return _with_labels(images, labels)
    if extension_of(images) in ("yaml", "yml"):
        return YoloData(kind="yolo", data=images), yolo_names(images)
    if extension_of(images) in ("parquet", "tar"):
        return _packed(images)
    folder = Folder(images)
    names = folder.list()
    if not names:
        raise DatasetError(f"there is nothing in {folder.url}; check the path")
    if any(name.startswith("JPEGImages/") for name in names):
        return _voc(images, names)
    if found := next((name for name in names if name in ("data.yaml", "dataset.yaml", "data.yml")), None):
        return YoloData(kind="yolo", data=f"{images.rstrip('/')}/{found}"), yolo_names(f"{folder.url}/{found}")
    if found := next(_tables_beside(images, folder, names), None):
        return _with_labels(images, found)
    if any(name.endswith((".tar", ".parquet")) for name in names):
        return _packed(images)
    folders = sorted({name.split("/")[-2] for name in find_images(images).names if "/" in name})
    if len(folders) > 1:
        return ClassFoldersData(kind="class_folders", images=images), folders
    raise DatasetError(
        f"nothing tells what the images of {folder.url} show: write a table with the columns image_id and classes "
        f"(IMG_0001.jpg,person;horse) and call `fmwsss init {images} labels.csv`, or sort them into a folder a class, "
        f"or have CLIP label them: `fmwsss init {images} --classes person,horse`"
    )


def _tables_beside(images: str, folder: Folder, names: list[str]) -> Iterator[str]:
    """Tables in the folder or beside it that name at least one of its images."""
    parent = Folder(images.rstrip("/").rpartition("/")[0] or ".")
    inside = [f"{images.rstrip('/')}/{name}" for name in names if "/" not in name]
    there = [name for name in parent.list() if "/" not in name] if parent.url != folder.url and parent.is_local else []
    beside = [f"{images.rstrip('/').rpartition('/')[0] or '.'}/{name}" for name in there]
    for place in [place for place in (*inside, *beside) if extension_of(place) in TABLES]:
        try:
            data, classes = _with_labels(images, place.removeprefix("./"))
            if data.kind == "folder" or read_dataset(data, classes).sources:
                yield place.removeprefix("./")
        except (DatasetError, StorageError):
            continue


def _with_labels(images: str, labels: str) -> tuple[LabelledData, list[str]]:
    if extension_of(labels) == "json" and is_coco(labels):
        return CocoData(kind="coco", images=images, annotations=labels), categories_of(labels)
    table = read_table(labels)
    try:
        read = labels_of(table, ClassNames())
    except DatasetError:
        hot = columns_of_classes(table)
        if not hot:
            raise
        read = labels_of(table, ClassNames(hot))
        classes = hot
    else:
        classes = sorted({name for own in read.of.values() for name in own})
    finder = Finder(find_images(images))
    if not any(_is_there(finder, given) for given in read.of):
        raise DatasetError(f"no image of {images} is named in {labels}")
    if classes and all(name.isdecimal() for name in classes):
        raise DatasetError(f"the labels in {labels} are numbers: write names, from which the run file gets its classes")
    return FolderData(kind="folder", images=images, labels=labels), classes


def _is_there(finder: Finder, given: str) -> bool:
    try:
        return finder.find(given) is not None
    except DatasetError:
        return False


def _packed(files: str) -> tuple[LabelledData, list[str]]:
    is_file = files.endswith((".tar", ".parquet"))
    is_tar = files.endswith(".tar") or (not is_file and any(name.endswith(".tar") for name in Folder(files).list()))
    data = WebDatasetData(kind="webdataset", files=files) if is_tar else ParquetData(kind="parquet", files=files)
    return data, sorted({name for own in read_dataset(data).sources for name in own.classes or ()})


def _voc(root: str, names: list[str]) -> tuple[LabelledData, list[str]]:
    splits = [name for name in names if name.startswith("ImageSets/") and name.endswith(".txt")]
    known = [Path(name).stem for name in splits]
    split = next((own for own in ("trainaug", "train", "trainval") if own in known), known[0] if known else "train")
    return VocData(kind="voc", root=root, split=split), list(VOC12.classes)
