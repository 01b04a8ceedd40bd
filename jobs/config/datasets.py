"""Section `dataset` of a run file: which images, and where their labels are."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from fmwsss.jobs.config.base import Count, Section


class DatasetSection(Section):
    """What every dataset has."""

    only_images: str | None = None
    """A text file with an id on each line, a path or URL: take these images only; null takes all."""


class ToyData(DatasetSection):
    """Scenes drawn by program: nothing to download."""

    kind: Literal["toy"]
    """Scenes drawn by program."""
    num_images: Count
    """How many scenes are drawn."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the first scene; the following scenes have the following seeds."""


class VocData(DatasetSection):
    """A PASCAL VOC layout; labels from Annotations, or else the classes of the masks."""

    kind: Literal["voc"]
    """A folder in the layout of PASCAL VOC."""
    root: str
    """The folder with JPEGImages and ImageSets: a path or URL."""
    split: str
    """Name of the list of images in ImageSets/Segmentation, such as `train`, or a list below the root: `x/y.txt`."""
    difficult: bool = True
    """Whether objects that the annotations call difficult are labels."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class FolderData(DatasetSection):
    """A folder of images and a table of image names and their classes."""

    kind: Literal["folder"]
    """A folder of images, with sub-folders, and a table of labels."""
    images: str
    """The folder of images: a path or URL."""
    labels: str
    """Table of images and their classes (CSV, TSV, JSON, Parquet; a row an image or a row a label, or a column a
    class), or a COCO json: a path or URL."""
    truth: str | None = None
    """Folder of ground truth, PNGs of class indices named as the images are; for evaluation only."""
    binary_truth: bool = False
    """Whether every value but 0 in the ground truth is the one class that there is."""
    first_index: Literal[0, 1] | None = None
    """Number of the first class, where labels are numbers; null takes 1, and refuses a 0."""
    split: str = "all"
    """Name of this set of images in tables and reports; of a table with a column `split`, the rows that say so."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class ClassFoldersData(DatasetSection):
    """A folder with a folder of images for each class."""

    kind: Literal["class_folders"]
    """A folder for each class, called as it is."""
    images: str
    """The folder with the folders of the classes: a path or URL."""
    truth: str | None = None
    """Folder of ground truth, PNGs of class indices named as the images are; for evaluation only."""
    binary_truth: bool = False
    """Whether every value but 0 in the ground truth is the one class that there is."""
    split: str = "all"
    """Name of this set of images in tables and reports."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class CocoData(DatasetSection):
    """A folder of images and a json of COCO: instances, panoptic segments, or labels alone."""

    kind: Literal["coco"]
    """A json in COCO's format; categories are classes by their names."""
    images: str
    """The folder of images: a path or URL."""
    annotations: str
    """The json: a path or URL."""
    truth: bool = True
    """Whether the outlines are ground truth; for evaluation only."""
    split: str = "all"
    """Name of this set of images in tables and reports."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class YoloData(DatasetSection):
    """A dataset in the layout of YOLO: images/, labels/ and a YAML file with names."""

    kind: Literal["yolo"]
    """The layout of YOLO; classes by the names in its YAML file."""
    data: str
    """The YAML file, a path or URL."""
    split: str = "train"
    """Which of its sets: `train`, `val` or `test`."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class ParquetData(DatasetSection):
    """Parquet files with the images in them, as Hugging Face's datasets have them."""

    kind: Literal["parquet"]
    """Parquet files with encoded images."""
    files: str
    """A file, or a folder of files: a path or URL."""
    image: str | None = None
    """The column of images; null finds it."""
    truth: str | None = None
    """The column of label PNGs, for evaluation only; null for none."""
    first_index: Literal[0, 1] | None = None
    """Number of the first class, where labels are numbers without names; null takes 1, and refuses a 0."""
    split: str = "all"
    """Name of this set; files whose names begin with it are taken alone, if there are such."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class WebDatasetData(DatasetSection):
    """Tar files of images with their labels beside them, as WebDataset has them."""

    kind: Literal["webdataset"]
    """Tar files in the manner of WebDataset."""
    files: str
    """A tar, or a folder of tars: a path or URL."""
    first_index: Literal[0, 1] | None = None
    """Number of the first class, where labels are numbers; null takes 1, and refuses a 0."""
    split: str = "all"
    """Name of this set of images in tables and reports."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


class UnlabelledData(DatasetSection):
    """A folder of images without labels, for a segmenter to predict."""

    kind: Literal["unlabelled"]
    """A folder of images without labels."""
    images: str
    """The folder of images: a path or URL."""
    truth: str | None = None
    """Folder of ground truth, PNGs of class indices named as the images are; for evaluation only."""
    split: str = "all"
    """Name of this set of images in tables and reports."""
    max_images: Count | None = None
    """Take the first images only; null takes all."""


LabelledData = ToyData | VocData | FolderData | ClassFoldersData | CocoData | YoloData | ParquetData | WebDatasetData

DATASETS: dict[str, type[Section]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section
    for section in (*get_args(LabelledData), UnlabelledData)
}


class ImageLimits(Section):
    """What an image may be, checked before it is decoded."""

    max_pixels: Count = 64_000_000
    """Pixels of an image; larger ones are failures."""
    max_bytes: Count = 64_000_000
    """Bytes of an image file; larger ones are failures."""
