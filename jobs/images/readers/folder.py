"""Folders of images: with a table of their labels, sorted by class, or without any labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.images.readers.base import (
    DatasetError,
    Listing,
    Source,
    counted,
    extension_of,
    id_of,
    listing_of,
    path_of,
    stem_of,
)
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.image_files import Finder, ImageFiles, find_images
from fmwsss.jobs.images.readers.label_table import labels_of
from fmwsss.jobs.images.readers.table_files import read_table


def read_folder(
    images_url: str,
    labels_url: str,
    truth_url: str | None,
    names: ClassNames,
    split: str | None = None,
    first_index: int | None = None,
) -> Listing:
    """A folder of images and a table of their labels (`label_table` has its forms).

    Args:
        images_url: the folder; its sub-folders count.
        labels_url: the table.
        truth_url: folder of label PNGs named as the images are; None for none.
        names: the classes of the run.
        split: of the table, where it has such a column.
        first_index: number of the first class, where labels are numbers.

    Raises:
        DatasetError: no images, no labels, or ground truth that fits no image.
    """
    files = find_images(images_url, [truth_url] if truth_url else [])
    labels = labels_of(read_table(labels_url), names, split, first_index)
    finder, ids = Finder(files), files.ids()
    found: dict[str, Source] = {}
    strays = []
    for given, own in labels.of.items():
        problem = labels.problems.get(given)
        try:
            file = finder.find(given)
            problem = problem if file else f"has labels but no image in {files.folder.url}"
        except DatasetError as error:
            file, problem = None, f"the name {given} {error}"
        if file is None:
            strays.append(Source(id_of(given), files.url(given), tuple(own), problem=problem))
            continue
        before = found.get(file)
        classes = (*(before.classes or () if before else ()), *own)
        problem = problem or (before.problem if before else None)
        found[file] = Source(ids[file], files.url(file), tuple(dict.fromkeys(classes)), problem=problem)
    if "" in labels.problems:
        strays.append(Source(id_of("no-name"), files.folder.url, (), problem=labels.problems[""]))
    bare = [Source(ids[file], files.url(file), ()) for file in files.names if file not in found]
    sources, notes = _with_truth([*found.values(), *bare], files, truth_url)
    if strays:
        notes.append(f"{counted([path_of(own.image_id) for own in strays], 'row')} of labels without an image")
    notes = [*files.notes, *labels.notes, *finder.notes(), *names.notes(), *notes]
    return listing_of([*sources, *strays], labels_url, notes, [*labels.questions, *names.questions()])


def read_class_folders(images_url: str, truth_url: str | None, names: ClassNames) -> Listing:
    """A folder with a folder for each class, which holds the images that show it.

    The class is the innermost folder whose name is one; an image in several of them is several images.

    Args:
        images_url: the folder.
        truth_url: a folder of label PNGs named as the images are; None where there is no ground truth.
        names: of the classes.

    Returns:
        The images, and what is to be told of them.

    Raises:
        DatasetError: no images, or no folder that is called as a class.
    """
    files = find_images(images_url, [truth_url] if truth_url else [])
    ids = files.ids()
    sources, strange = [], {}
    for file in files.names:
        folders = file.split("/")[:-1]
        inner = next((folder for folder in reversed(folders) if names.find(folder)), None)
        if inner is None and folders:
            strange.setdefault(folders[-1], []).append(file)
        sources.append(Source(ids[file], files.url(file), names.read([inner]) if inner else ()))
    if not any(own.classes for own in sources):
        raise DatasetError(
            f"no folder in {files.folder.url} is called as a class: there are "
            f"{', '.join(list(strange)[:8]) or 'none'}, and classes are {', '.join(names.classes[:8])}"
        )
    sources, notes = _with_truth(sources, files, truth_url)
    questions = [f"the folder {name} ({len(own)} images) is called as no class" for name, own in strange.items()]
    return listing_of(sources, files.folder.url, [*files.notes, *names.notes(), *notes], questions[:10])


def list_images(images_url: str, truth_url: str | None = None) -> Listing:
    """A folder of images without labels, none of which are needed.

    Args:
        images_url: the folder.
        truth_url: a folder of label PNGs named as the images are; None where there is no ground truth.

    Returns:
        The images, and what is to be told of them.

    Raises:
        DatasetError: there are no images.
    """
    files = find_images(images_url, [truth_url] if truth_url else [])
    ids = files.ids()
    sources = [Source(ids[name], files.url(name), ()) for name in files.names]
    sources, notes = _with_truth(sources, files, truth_url)
    return listing_of(sources, files.folder.url, [*files.notes, *notes], needs_labels=False)


def _with_truth(sources: list[Source], files: ImageFiles, truth_url: str | None) -> tuple[list[Source], list[str]]:
    """The images with their label PNGs, by path without extension, or by the name alone where that is unique.

    Raises:
        DatasetError: the folder is not there, or fits no image.
    """
    if truth_url is None:
        return sources, []
    masks = Folder(truth_url)
    pngs = [name for name in masks.list() if extension_of(name) == "png"]
    if not pngs:
        raise DatasetError(f"there are no label PNGs in {masks.url}: check `dataset.truth`")
    by_path = {stem_of(name): name for name in pngs} | {name.removesuffix(".png"): name for name in pngs}
    by_name: dict[str, str | None] = {}
    for name in pngs:
        stem = stem_of(name).rpartition("/")[2]
        by_name[stem] = None if stem in by_name else name  # of two that fit, neither
    found = [_mask_of(own, by_path, by_name) for own in sources]
    with_truth = [
        replace(own, truth_url=f"{masks.url}/{name}" if name else None)
        for own, name in zip(sources, found, strict=True)
    ]
    num = sum(name is not None for name in found)
    if not num:
        example = f"{pngs[0]}, say, beside {path_of(sources[0].image_id)}" if sources else pngs[0]
        raise DatasetError(
            f"0 of {len(sources)} images have ground truth in {masks.url} ({example}): name masks as images"
        )
    return with_truth, [f"{num} of {len(sources)} images have ground truth in {masks.url}"]


def _mask_of(source: Source, by_path: Mapping[str, str], by_name: Mapping[str, str | None]) -> str | None:
    path = path_of(source.image_id)
    return by_path.get(path) or by_path.get(stem_of(path)) or by_name.get(stem_of(path).rpartition("/")[2])
