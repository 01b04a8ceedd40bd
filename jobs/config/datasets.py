"""Section `dataset` of a run file: which images, and where their labels are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmwsss.jobs.config.base import Count, Section


class ToyData(Section):
    """Scenes drawn by program: nothing to download."""

    kind: Literal["toy"]
    """Scenes drawn by program."""
    num_images: Count
    """How many scenes are drawn."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the first scene; the following scenes have the following seeds."""


class VocData(Section):
    """A PASCAL VOC layout; labels from Annotations, or else the classes of the masks."""

    kind: Literal["voc"]
    """A folder in the layout of PASCAL VOC."""
    root: str
    """The folder with JPEGImages and ImageSets: a path or URL."""
    split: str
    """Name of the list of images in ImageSets/Segmentation, such as `train`, or a list below the root: `x/y.txt`."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class FolderData(Section):
    """A folder of images and a table (CSV or Parquet) of image ids and their classes."""

    kind: Literal["folder"]
    """A folder of images with a table of labels."""
    images: str
    """The folder of images: a path or URL."""
    labels: str
    """Table of image ids and their classes, CSV or Parquet: a path or URL."""
    truth: str | None = None
    """Folder of ground truth, PNGs of class indices named by image id; for evaluation only."""
    split: str = "all"
    """Name of this set of images in tables and reports."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class UnlabelledData(Section):
    """A folder of images without labels, for a segmenter to predict."""

    kind: Literal["unlabelled"]
    """A folder of images without labels."""
    images: str
    """The folder of images: a path or URL."""
    truth: str | None = None
    """Folder of ground truth, PNGs of class indices named by image id; for evaluation only."""
    split: str = "all"
    """Name of this set of images in tables and reports."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class ImageLimits(Section):
    """What an image may be, checked before it is decoded."""

    max_pixels: Count = 64_000_000
    """Pixels of an image; larger ones are failures."""
    max_bytes: Count = 64_000_000
    """Bytes of an image file; larger ones are failures."""
