"""Reader of tar files in the manner of WebDataset: `key.jpg` beside `key.cls`, `key.txt` or `key.json`."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.images.places import tar_place
from fmwsss.jobs.images.readers.base import DatasetError, Listing, Source, extension_of, id_of, listing_of, stem_of
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.image_files import EXTENSIONS
from fmwsss.jobs.images.readers.label_table import CLASS_COLUMNS, labels_of
from fmwsss.jobs.images.readers.table_files import Table, column_key, text_of

LABEL_EXTENSIONS = ("json", "cls", "txt", "labels", "classes")  # the first that there is
TRUTH_EXTENSIONS = ("seg.png", "mask.png", "truth.png")
MAX_LABEL_BYTES = 1 << 20


@dataclass
class _Sample:
    key: str
    image: str | None = None
    truth: str | None = None
    texts: dict[str, str] = field(default_factory=dict)


def read_webdataset(files_url: str, names: ClassNames, first_index: int | None = None) -> Listing:
    """Images and labels of tar files; no pixel is read here, only the places of the images.

    Args:
        files_url: a tar, or a folder of tars that are not compressed.
        names: the classes of the run.
        first_index: number of the first class, where labels are numbers.

    Raises:
        DatasetError: no such files, or one that is damaged or compressed.
    """
    if files_url.endswith(".tar"):
        parent, _, name = files_url.rpartition("/")
        folder, files = Folder(parent or "."), [name]
    else:
        folder = Folder(files_url)
        files = [name for name in folder.list() if name.endswith(".tar")]
    if not files:
        packed = [name for name in folder.list() if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.zst"))]
        hint = f"; {packed[0]} is compressed: images gain nothing by it, unpack it to .tar" if packed else ""
        raise DatasetError(f"there are no .tar files in {folder.url}{hint}")
    samples: dict[str, _Sample] = {}
    for name in files:
        for key, sample in _samples(folder, name).items():
            samples[key if key not in samples else f"{stem_of(name)}/{key}"] = sample
    if not any(sample.image for sample in samples.values()):
        raise DatasetError(f"there are no images in the tar files of {folder.url}")
    table = Table(folder.url, ["image_id", "classes"], [[key, _labels(sample)] for key, sample in samples.items()])
    labels = labels_of(table, names, None, first_index)
    sources = [
        Source(id_of(key), sample.image, tuple(labels.of.get(key, ())), sample.truth, problem=labels.problems.get(key))
        for key, sample in samples.items()
        if sample.image
    ]
    strays = [key for key, sample in samples.items() if not sample.image]
    notes = [*labels.notes, *names.notes()]
    if strays:
        notes.append(f"{len(strays)} keys have no image (such as {strays[0]}), left out")
    return listing_of(sources, folder.url, notes, [*labels.questions, *names.questions()])


def _samples(folder: Folder, name: str) -> dict[str, _Sample]:
    """The samples of one tar by their keys: a member's path up to the first dot of its name."""
    found: dict[str, _Sample] = {}
    url = f"{folder.url}/{name}"
    try:
        with folder.open(name) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                parent, slash, own = member.name.rpartition("/")
                if not member.isreg() or own.startswith("."):
                    continue
                stem, _, extension = own.partition(".")
                extension = extension.lower()
                sample = found.setdefault(f"{parent}{slash}{stem}", _Sample(f"{parent}{slash}{stem}"))
                place = tar_place(url, member.offset_data, member.size)
                if extension in TRUTH_EXTENSIONS:
                    sample.truth = place
                elif extension_of(own) in EXTENSIONS:
                    sample.image = sample.image or place
                elif extension in LABEL_EXTENSIONS and member.size <= MAX_LABEL_BYTES:
                    file = archive.extractfile(member)
                    sample.texts[extension] = text_of(file.read())[0] if file else ""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(f"{url} can't be read as a tar: {' '.join(str(error).split())}") from None
    return found


def _labels(sample: _Sample) -> Any:
    """What a sample says of its classes, as a cell of a table."""
    for extension in LABEL_EXTENSIONS:
        if extension not in sample.texts:
            continue
        text = sample.texts[extension].strip()
        if extension != "json":
            return ";".join(text.splitlines())
        try:
            told = json.loads(text)
        except ValueError:
            return text  # it is told with the image that it is no list of classes
        if isinstance(told, dict):
            key = next((key for key in told if column_key(key) in CLASS_COLUMNS), None)
            if key is None:
                continue
            told = told[key]
        return told
    return None
