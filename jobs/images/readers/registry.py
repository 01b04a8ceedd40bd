"""Which reader reads the dataset of a run file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fmwsss.jobs.config.datasets import LabelledData, UnlabelledData
from fmwsss.jobs.images.id_list import ids_of_list
from fmwsss.jobs.images.readers.base import DatasetError, Listing, counted, without_labels
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.coco import is_coco, read_coco
from fmwsss.jobs.images.readers.folder import list_images, read_class_folders, read_folder
from fmwsss.jobs.images.readers.parquet import read_parquet
from fmwsss.jobs.images.readers.toy import draw_toy
from fmwsss.jobs.images.readers.voc import read_voc
from fmwsss.jobs.images.readers.webdataset import read_webdataset
from fmwsss.jobs.images.readers.yolo import read_yolo

_remembered: dict[tuple[str, tuple[str, ...]], Listing] = {}


def read_dataset(
    data: LabelledData | UnlabelledData, classes: Iterable[str] = (), keep_unlabelled: bool = False
) -> Listing:
    """The images of the dataset of a run file, each id once without a problem, in a fixed order.

    Args:
        data: the section of the run file.
        classes: of the run's vocabulary; labels are found among them.
        keep_unlabelled: whether images without labels are images of the dataset, for CLIP tags them.

    Raises:
        DatasetError: there are none, or what says which they are is missing or can be read in two ways.
        StorageError: a folder can't be read.
    """
    listing = _remembered.pop((data.model_dump_json(), tuple(classes)), None)
    listing = listing or without_labels(_read(data, ClassNames(classes)), keep_unlabelled)
    if data.only_images is not None:
        listing = _only(listing, data.only_images)
    most = None if data.kind == "toy" else data.max_images
    return listing if most is None else replace(listing, sources=listing.sources[:most])


def _only(listing: Listing, place: str) -> Listing:
    """The images of a listing that a list names."""
    ids = ids_of_list(place)
    sources = [source for source in listing.sources if source.image_id in ids]
    if not sources:
        raise DatasetError(f"none of the {len(ids)} ids of {place} is one of the {len(listing.sources)} images")
    absent = sorted(ids - {source.image_id for source in sources})
    notes = [*listing.notes, *([f"{counted(absent, 'listed image')} not in the dataset"] if absent else [])]
    return replace(listing, sources=sources, notes=notes)


def remember(data: LabelledData | UnlabelledData, classes: Iterable[str], listing: Listing) -> None:
    """Has the next `read_dataset` of the same words return this listing, which was read and told a moment ago.

    Args:
        data: the section `dataset` of the run file.
        classes: of the run.
        listing: that was read of them.
    """
    _remembered[data.model_dump_json(), tuple(classes)] = replace(listing, is_told=True)


def _read(data: LabelledData | UnlabelledData, names: ClassNames) -> Listing:
    if data.kind == "toy":
        return draw_toy(data.num_images, data.first_seed)
    if data.kind == "voc":
        return read_voc(data.root, data.split)
    if data.kind == "unlabelled":
        return list_images(data.images, data.truth)
    if data.kind == "class_folders":
        return read_class_folders(data.images, data.truth, names)
    if data.kind == "coco":
        return read_coco(data.images, data.annotations, names, data.truth)
    if data.kind == "yolo":
        return read_yolo(data.data, data.split, names)
    if data.kind == "parquet":
        return read_parquet(data.files, names, data.image, data.truth, data.split, data.first_index)
    if data.kind == "webdataset":
        return read_webdataset(data.files, names, data.first_index)
    if data.labels.lower().endswith(".json") and is_coco(data.labels):
        return read_coco(data.images, data.labels, names, with_truth=False)
    return read_folder(data.images, data.labels, data.truth, names, data.split, data.first_index)
