"""Section `dataset` of a run file: which images, and where their labels are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmwsss.jobs.config.base import Count, Section


class ToyData(Section):
    """Scenes drawn by program: nothing to download."""

    kind: Literal["toy"]
    num_images: Count
    first_seed: Annotated[int, Field(ge=0)] = 0


class VocData(Section):
    """A PASCAL VOC layout; labels from Annotations, or else the classes of the masks in SegmentationClass."""

    kind: Literal["voc"]
    root: str
    split: str
    max_images: Count | None = None


class FolderData(Section):
    """A folder of images and a table (CSV or Parquet) of image ids and their classes."""

    kind: Literal["folder"]
    images: str
    labels: str
    truth: str | None = None
    split: str = "all"
    max_images: Count | None = None


class UnlabelledData(Section):
    """A folder of images without labels, for a segmenter to predict; truth is a folder of label PNGs named by id."""

    kind: Literal["unlabelled"]
    images: str
    truth: str | None = None
    split: str = "all"
    max_images: Count | None = None


class ImageLimits(Section):
    """What an image may be, checked before it is decoded."""

    max_pixels: Count = 64_000_000
    max_bytes: Count = 64_000_000
