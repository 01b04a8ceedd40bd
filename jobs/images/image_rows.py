"""One image of a dataset as a row of a run: read, checked and decoded once, with its labels and its ground truth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmwsss.cluster.execution.machine_faults import kind_of
from fmwsss.cluster.execution.subprocess_decoder import decoder
from fmwsss.cluster.storage.folder import FileError, RefusedFile, StorageError, read_url
from fmwsss.core.images import ImageError, encode_label_png
from fmwsss.core.labels import IGNORE
from fmwsss.core.schemas import failure_row
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.datasets import ImageLimits
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images.places import COCO, TOY, read_instances, read_place
from fmwsss.jobs.images.readers.base import DatasetError, Source
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.record import STAGE

NUM_MASKS = 32  # that are looked at before all are read


@dataclass(frozen=True)
class Reading:
    """How the images of a dataset are read. Small and picklable.

    Attributes:
        vocabulary: the classes of the run.
        limits: what an image may be.
        needs_labels: whether an image without labels is a failure.
        difficult: whether objects that an annotation of VOC calls difficult are labels.
        binary_truth: whether every value but 0 of a label PNG is class 1.
    """

    vocabulary: Vocabulary
    limits: ImageLimits = field(default_factory=ImageLimits)
    needs_labels: bool = True
    difficult: bool = True
    binary_truth: bool = False


def reading_of(config: RunConfig) -> Reading:
    """How the images of a run file are read."""
    data = config.dataset
    return Reading(
        config.resolve_vocabulary(),
        config.limits,
        not (data.kind == "unlabelled" or config.labels.is_tagged),
        getattr(data, "difficult", True),
        getattr(data, "binary_truth", False),
    )


def image_row(source: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Reads and checks one image with its labels and its ground truth.

    Args:
        source: a row of SOURCES.
        reading: how the images of the run are read.

    Returns:
        The row of IMAGES.

    Raises:
        ValueError: the image, its labels or its ground truth can't be used; one sentence.
    """
    if source["problem"]:
        raise DatasetError(source["problem"])
    vocabulary, limits = reading.vocabulary, reading.limits
    names: Sequence[str] | None = source["classes"]
    if source["image_url"].startswith(TOY):
        data, truth, names = _toy(int(source["image_url"].removeprefix(TOY)))
        height_px, width_px, facts = decoder().look(data, limits.max_pixels)
    else:
        data = read_place(source["image_url"], limits.max_bytes)
        height_px, width_px, facts = decoder().look(data, limits.max_pixels)
        truth = _read_truth(source["truth_url"], (height_px, width_px), reading) if source["truth_url"] else None
    indices = _truth_indices(truth, (height_px, width_px), vocabulary) if truth is not None else []
    if names is None:
        if source["annotation_url"]:
            names = _annotated(read_url(source["annotation_url"], limits.max_bytes), reading.difficult)
        else:
            names = [vocabulary.classes[index - 1] for index in indices]
    names = ClassNames(vocabulary.classes).read(names)
    if reading.needs_labels and not names:
        raise DatasetError("has no labels")
    return {
        "image_id": source["image_id"],
        "image": data,
        "height_px": height_px,
        "width_px": width_px,
        "classes": [vocabulary.classes[index - 1] for index in sorted(set(vocabulary.indices(names)))],
        "sha256": hashlib.sha256(data).hexdigest(),
        "truth": encode_label_png(truth) if truth is not None else None,
        "orientation": facts.orientation,
        "bits": facts.bits,
    }


def row_or_failure(source: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """The row of IMAGES of a source, or of FAILURES where the fault is the image's or its file's.

    Args:
        source: a row of SOURCES.
        reading: how the images of the run are read.

    Returns:
        One row; that of a failure has the key `error_type`.

    Raises:
        StorageError: the store does not answer.
    """
    try:
        return image_row(source, reading)
    except StorageError as error:
        # A file that is not there, or not ours to read, is a fault of this image; a store that does not answer is not.
        if not isinstance(error, FileError | RefusedFile):
            raise
        return failure_row(source["image_id"], STAGE, error)
    except Exception as error:
        if kind_of(error) is not None:
            raise  # not this image's fault
        return failure_row(source["image_id"], STAGE, error)


def demand_indices(sources: Sequence[Source], reading: Reading) -> None:
    """Looks at some label PNGs before all are read: masks of 0 and 255 alone are not what a label map is.

    255 is ignored, so such ground truth would say nothing but background.

    Args:
        sources: of the dataset.
        reading: how the images of the run are read.

    Raises:
        DatasetError: no other value is in any of them.
    """
    places = [own.truth_url for own in sources if own.truth_url and not own.problem]
    masks = [place for place in places if not place.startswith((COCO, TOY))][:NUM_MASKS]
    values: set[int] = set()
    for place in masks:
        try:
            values |= set(np.unique(decoder().labels(read_place(place, reading.limits.max_bytes))).tolist())
        except (StorageError, ImageError):
            continue  # it will be a row of the failures table
    if values == {0, IGNORE} and not reading.binary_truth:
        raise DatasetError(
            f"the ground truth has the values 0 and 255 alone ({len(masks)} masks looked at, such as {masks[0]}), and "
            "255 is what is ignored: if it is your one class, say `dataset.binary_truth: true`, or write class indices"
        )


def _toy(seed: int) -> tuple[bytes, UInt8[np.ndarray, "height width"], Sequence[str]]:
    from fmwsss.core.toy.world import draw_scene

    scene = draw_scene(seed)
    buffer = BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    return buffer.getvalue(), scene.truth, scene.classes


def _read_truth(place: str, size: tuple[int, int], reading: Reading) -> UInt8[np.ndarray, "height width"]:
    """A label PNG, or the outlines of an image, painted."""
    if not place.startswith(COCO):
        truth = decoder().labels(read_place(place, reading.limits.max_bytes))
        return np.where(truth > 0, 1, 0).astype(np.uint8) if reading.binary_truth else truth
    instances, told = read_instances(place)
    if told not in ((0, 0), size):
        raise ImageError(
            f"its annotations are of {told[1]} x {told[0]} pixels, and the image, upright, has {size[1]} x {size[0]}"
        )
    return decoder().instances(instances, size)


def _truth_indices(
    truth: UInt8[np.ndarray, "height width"], size: tuple[int, int], vocabulary: Vocabulary
) -> list[int]:
    if truth.shape != size:
        given = f"{truth.shape[1]} x {truth.shape[0]}"
        raise ImageError(f"its truth has {given} pixels, and the image, upright, {size[1]} x {size[0]}")
    indices = [int(value) for value in np.unique(truth) if value not in (0, IGNORE)]
    if indices and indices[-1] > len(vocabulary.classes):
        raise ImageError(f"its truth has the class {indices[-1]}; the vocabulary has {len(vocabulary.classes)} classes")
    return indices


def _annotated(data: bytes, difficult: bool) -> list[str]:
    """Names of the objects of an annotation; those of their parts are none. A namespace changes nothing."""
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DatasetError("its annotation is no XML") from error
    found = []
    for node in root.iter():
        if _tag(node) != "object":
            continue
        told = {_tag(child): (child.text or "").strip() for child in node}
        if told.get("name") and (difficult or told.get("difficult", "0") in ("", "0", "false")):
            found.append(told["name"])
    return found


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]
