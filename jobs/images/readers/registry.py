"""Which reader reads the dataset of a run file."""

from __future__ import annotations

from fmwsss.jobs.config.datasets import FolderData, ToyData, UnlabelledData, VocData
from fmwsss.jobs.images.readers.base import Source
from fmwsss.jobs.images.readers.folder import list_images, read_folder
from fmwsss.jobs.images.readers.toy import draw_toy
from fmwsss.jobs.images.readers.voc import read_voc


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
