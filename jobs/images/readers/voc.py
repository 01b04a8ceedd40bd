"""Reader of PASCAL VOC folders."""

from __future__ import annotations

from dataclasses import replace

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.images.readers.base import DatasetError, Source, _checked, _stems, _url


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
