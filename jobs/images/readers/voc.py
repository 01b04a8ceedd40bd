"""Reader of PASCAL VOC folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from posixpath import basename, normpath

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.images.readers.base import DatasetError, Listing, Source, extension_of, id_of, listing_of, stem_of
from fmwsss.jobs.images.readers.image_files import EXTENSIONS
from fmwsss.jobs.images.readers.table_files import text_of

# Ground truth of a list: the first of these that has a mask for every image. The second is SBD's (trainaug).
MASKS = ("SegmentationClass", "SegmentationClassAug")
IMAGES = "JPEGImages"


def read_voc(root: str, split: str) -> Listing:
    """A PASCAL VOC folder: JPEGImages, ImageSets/Segmentation (or else Main), Annotations, SegmentationClass.

    A list has image ids, file names, or lines of the kind that trainaug's has: `/JPEGImages/x.jpg
    /SegmentationClassAug/x.png`, paths below the root. Labels come from the annotations, or else are the classes of the
    masks.

    Args:
        root: the folder, a path or URL.
        split: name of a list, or with `.txt` at its end a list below the root.

    Raises:
        DatasetError: there is no such list.
    """
    folder = Folder(root)
    texts = dict.fromkeys(text.strip() for text in _list(folder, split))
    lines = [re.split(r"[\s,;]+", text) for text in texts if text]
    images = _stems(folder.child(IMAGES), EXTENSIONS)
    annotations = _stems(folder.child("Annotations"), {"xml"})
    below = [[_below(word, folder.url) for word in words[:2]] for words in lines]
    stems = [_stem_in(path[0], IMAGES) for path in below]
    masks = _masks(folder, stems)
    sources = []
    for stem, path in zip(stems, below, strict=True):
        name = f"{IMAGES}/{images.get(stem, f'{stem}.jpg')}"
        if "/" in path[0] and not path[0].startswith(f"{IMAGES}/"):
            name = path[0]
        mask = f"{folder.url}/{masks[stem]}" if stem in masks else None
        if len(path) > 1 and extension_of(path[1]) == "png":
            mask = f"{folder.url}/{path[1]}"
        annotation = f"{folder.url}/Annotations/{annotations[stem]}" if stem in annotations else None
        problem = None
        if any(word.startswith("..") for word in path):
            problem = "its line in the list leads out of the folder"
        elif mask is None and annotation is None:
            problem = "has no labels: there is neither an annotation nor a mask"
        sources.append(Source(id_of(stem), f"{folder.url}/{name}", None, mask, annotation, problem))
    return listing_of(sources, f"split {split} of {folder.url}")


def _below(word: str, root: str) -> str:
    """A path of a list, below the root: it may begin with a slash, with the root, or with other folders before it."""
    word = normpath(word.replace("\\", "/").removeprefix(f"{root}/").lstrip("/"))
    for folder in (IMAGES, *MASKS):
        if f"/{folder}/" in word and not word.startswith(".."):
            word = word[word.index(f"/{folder}/") + 1 :]
    return word


def _stem_in(path: str, folder: str) -> str:
    """The id of an image of a list: its path below the folder of images without extension."""
    path = path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else basename(path) if "/" in path else path
    return stem_of(path) if extension_of(path) in EXTENSIONS else path


def _list(folder: Folder, split: str) -> list[str]:
    """The lines of a list."""
    if split.endswith(".txt"):
        if not folder.exists(split):
            raise DatasetError(f"there is no list {split} in {folder.url}")
        return text_of(folder.read(split))[0].splitlines()
    for sets in ("ImageSets/Segmentation", "ImageSets/Main"):
        splits = folder.child(sets).list()
        if f"{split}.txt" in splits:
            return text_of(folder.child(sets).read(f"{split}.txt"))[0].splitlines()
        if splits:
            known = ", ".join(name.removesuffix(".txt") for name in splits[:10])
            raise DatasetError(f"there is no split {split!r} in {folder.url}/{sets}; there are {known}")
    raise DatasetError(f"{folder.url} is no VOC folder: it has no ImageSets/Segmentation/{split}.txt")


def _stems(folder: Folder, extensions: set[str] | frozenset[str]) -> Mapping[str, str]:
    """Names by their paths without extension; hidden ones are the operating system's."""
    names = [name for name in folder.list() if extension_of(name) in extensions]
    return {stem_of(name): name for name in names if not name.rpartition("/")[2].startswith(".")}


def _masks(folder: Folder, stems: Sequence[str]) -> dict[str, str]:
    """Where the mask of each image is; all in one folder if one has them all, so that one list has one ground truth."""
    found: dict[str, str] = {}
    for name in MASKS:
        masks = _stems(folder.child(name), {"png"})
        own = {stem: f"{name}/{masks[stem]}" for stem in stems if stem in masks}
        if len(own) == len(set(stems)):
            return own
        found = own | found
    return found
