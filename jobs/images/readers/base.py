"""What every dataset reader returns, and the checks that all of them share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from fmwsss.cluster.storage.folder import Folder

IMAGE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


EXTENSIONS = {"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"}


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


def _stems(folder: Folder, extensions: set[str]) -> dict[str, str]:
    names = [name for name in folder.list() if _extension(name) in extensions and "/" not in name]
    return {_stem(name): name for name in names}


def _url(folder: Folder, name: str | None) -> str | None:
    return None if name is None else f"{folder.url}/{name}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
