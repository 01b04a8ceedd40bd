"""Reader of PASCAL VOC folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from posixpath import basename, normpath

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.images.readers.base import DatasetError, Source, _checked, _stem, _stems, _url

# Ground truth of a list: the first of these that has a mask for every image. The second is SBD's (trainaug).
MASKS = ("SegmentationClass", "SegmentationClassAug")


def read_voc(root: str, split: str) -> list[Source]:
    """A PASCAL VOC folder: JPEGImages, ImageSets/Segmentation (or else Main), Annotations, SegmentationClass.

    A list has image ids, or lines of the kind that trainaug's has: `/JPEGImages/x.jpg /SegmentationClassAug/x.png`,
    paths below the root. Labels come from the annotations, or else are the classes of the masks.

    Args:
        root: the folder, a path or URL.
        split: name of a list, or with `.txt` at its end a list below the root.

    Raises:
        DatasetError: there is no such list.
    """
    folder = Folder(root)
    lines = [line.split() for line in _list(folder, split) if line.strip()]
    ids = [_stem(basename(words[0])) if "/" in words[0] else words[0] for words in lines]
    masks = _masks(folder, ids)
    annotations = _stems(folder.child("Annotations"), {"xml"})
    sources = []
    for image_id, words in zip(ids, lines, strict=True):
        source = Source(
            image_id,
            f"{folder.url}/JPEGImages/{image_id}.jpg",
            None,
            masks.get(image_id),
            _url(folder.child("Annotations"), annotations.get(image_id)),
        )
        if "/" in words[0]:
            below = [normpath(word.lstrip("/")) for word in words[:2]]
            source = replace(source, image_url=f"{folder.url}/{below[0]}")
            if len(below) > 1:
                source = replace(source, truth_url=f"{folder.url}/{below[1]}")
            if any(path.startswith("..") for path in below):
                source = replace(source, problem="its line in the list leads out of the folder")
        if source.truth_url is None and source.annotation_url is None:
            source = replace(source, problem="has no labels: there is neither an annotation nor a mask")
        sources.append(source)
    return _checked(sources, f"split {split} of {folder.url}")


def _list(folder: Folder, split: str) -> list[str]:
    """The lines of a list."""
    if split.endswith(".txt"):
        if not folder.exists(split):
            raise DatasetError(f"there is no list {split} in {folder.url}")
        return folder.read(split).decode().splitlines()
    for sets in ("ImageSets/Segmentation", "ImageSets/Main"):
        splits = folder.child(sets).list()
        if f"{split}.txt" in splits:
            return folder.child(sets).read(f"{split}.txt").decode().splitlines()
        if splits:
            known = ", ".join(name.removesuffix(".txt") for name in splits[:10])
            raise DatasetError(f"there is no split {split!r} in {folder.url}/{sets}; there are {known}")
    raise DatasetError(f"{folder.url} is no VOC folder: it has no ImageSets/Segmentation/{split}.txt")


def _masks(folder: Folder, ids: Sequence[str]) -> dict[str, str]:
    """Where the mask of each image is; all in one folder if one has them all, so that one list has one ground truth."""
    found: dict[str, str] = {}
    for name in MASKS:
        masks = _stems(folder.child(name), {"png"})
        own = {image_id: f"{folder.url}/{name}/{masks[image_id]}" for image_id in ids if image_id in masks}
        if len(own) == len(set(ids)):
            return own
        found = own | found
    return found
