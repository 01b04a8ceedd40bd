"""Layouts of folders: PASCAL VOC, mmsegmentation, CVAT, Cityscapes, FiftyOne and YOLO."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.labels import IGNORE, PALETTE
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.exporters.files import FileBatch
from fmwsss.jobs.exporters.labelled_images import LabelledImage
from fmwsss.jobs.exporters.outlines import pixel_outlines

SPLIT = "train"


class FolderExport:
    """Images and label PNGs in two folders; subclasses say which, and what lies beside them."""

    needs_superpixels = False
    images, masks = "images/{id}.{ext}", "masks/{id}.png"

    def __init__(self, folder: Folder, vocabulary: Vocabulary, about: dict[str, Any]) -> None:
        self.folder, self.vocabulary, self.about = folder, vocabulary, about
        self.files = FileBatch(folder)
        self.ids: list[str] = []

    def add(self, image: LabelledImage) -> None:
        """One image and its mask."""
        self.ids.append(image.image_id)
        stem, _, extension = image.file_name().rpartition(".")
        self.files.add(self.images.format(id=stem, ext=extension), image.upright())
        self.add_mask(image)

    def add_mask(self, image: LabelledImage) -> None:
        """Its label map."""
        self.files.add(self.masks.format(id=image.image_id), image.png)

    def beside(self) -> dict[str, str]:
        """Files of text that say what the rest is."""
        return {}

    def finish(self) -> str:
        """Writes what is left; what was written, in words."""
        for name, text in self.beside().items():
            self.files.add(name, text.encode())
        self.files.flush()
        return f"{len(self.ids)} images with their masks"


class VocExport(FolderExport):
    """`VOCdevkit/VOC2012` with JPEGImages, SegmentationClass and a list."""

    root = "VOCdevkit/VOC2012"
    images, masks = f"{root}/JPEGImages/{{id}}.{{ext}}", f"{root}/SegmentationClass/{{id}}.png"

    def beside(self) -> dict[str, str]:
        """The list, and the classes in their order."""
        lists = "\n".join(self.ids) + "\n"
        classes = "\n".join(("background", *self.vocabulary.classes)) + "\n"
        return {f"{self.root}/ImageSets/Segmentation/{SPLIT}.txt": lists, f"{self.root}/classes.txt": classes}


class MmsegExport(FolderExport):
    """The layout of mmsegmentation, and a stub of its configuration."""

    images, masks = f"img_dir/{SPLIT}/{{id}}.{{ext}}", f"ann_dir/{SPLIT}/{{id}}.png"

    def __init__(self, folder: Folder, vocabulary: Vocabulary, about: dict[str, Any]) -> None:
        super().__init__(folder, vocabulary, about)
        self._extensions: set[str] = set()

    def add(self, image: LabelledImage) -> None:
        """One image and its mask."""
        super().add(image)
        self._extensions.add(image.file_name().rpartition(".")[2])

    def beside(self) -> dict[str, str]:
        """A dataset of `BaseSegDataset`; its images must have one extension, which is told."""
        classes = ("background", *self.vocabulary.classes)
        suffix = "." + (sorted(self._extensions)[0] if self._extensions else "jpg")
        note = "" if len(self._extensions) < 2 else f"# There are {sorted(self._extensions)}: a dataset for each.\n"
        text = (
            f"# Written by fmwsss: {self.about['description']}\n{note}"
            f"data_root = '.'\nmetainfo = dict(\n    classes={classes!r},\n"
            f"    palette={PALETTE[: len(classes)].tolist()!r})\n"
            "train_dataloader = dict(\n    dataset=dict(\n        type='BaseSegDataset', data_root=data_root,\n"
            "        metainfo=metainfo, reduce_zero_label=False, ignore_index=255,\n"
            f"        img_suffix={suffix!r}, seg_map_suffix='.png',\n"
            f"        data_prefix=dict(img_path='img_dir/{SPLIT}', seg_map_path='ann_dir/{SPLIT}')))\n"
        )
        return {"fmwsss_dataset.py": text}


class CvatExport(FolderExport):
    """CVAT's `Segmentation mask 1.1`: colours of classes, and the file that names them."""

    needs_superpixels = True
    images, masks = "JPEGImages/{id}.{ext}", "SegmentationClass/{id}.png"

    def add_mask(self, image: LabelledImage) -> None:
        """Its label map in colours, and one of things."""
        labels = image.labels()
        things = np.zeros(labels.shape, np.uint16)
        for number, (_, mask) in enumerate(image.things(labels), start=1):
            things[mask] = number % 255
        self.files.add(self.masks.format(id=image.image_id), _png(PALETTE[np.where(labels == IGNORE, 0, labels)]))
        self.files.add(f"SegmentationObject/{image.image_id}.png", _png(PALETTE[things]))

    def beside(self) -> dict[str, str]:
        """The colours, and the list."""
        names = enumerate(("background", *self.vocabulary.classes))
        lines = [f"{name}:{','.join(map(str, PALETTE[index]))}::" for index, name in names]
        colours = "# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n"
        return {"labelmap.txt": colours, "ImageSets/Segmentation/default.txt": "\n".join(self.ids) + "\n"}


class CityscapesExport(FolderExport):
    """`leftImg8bit` and `gtFine` with grey masks of class indices."""

    images = f"leftImg8bit/{SPLIT}/fmwsss/{{id}}_leftImg8bit.{{ext}}"
    masks = f"gtFine/{SPLIT}/fmwsss/{{id}}_gtFine_labelIds.png"

    def add_mask(self, image: LabelledImage) -> None:
        """Its label map, grey and in colours."""
        labels = image.labels()
        name = self.masks.format(id=image.image_id)
        self.files.add(name, _png(labels))
        self.files.add(name.replace("_labelIds", "_color"), _png(PALETTE[labels]))

    def beside(self) -> dict[str, str]:
        """The classes in their order."""
        return {"classes.txt": "\n".join(("background", *self.vocabulary.classes)) + "\n"}


class FiftyOneExport(FolderExport):
    """FiftyOne's `ImageSegmentationDirectory`: data/ and labels/, with the names of the indices."""

    images, masks = "data/{id}.{ext}", "labels/{id}.png"

    def add_mask(self, image: LabelledImage) -> None:
        """Its label map as grey values, which FiftyOne takes as indices."""
        self.files.add(self.masks.format(id=image.image_id), _png(image.labels()))

    def beside(self) -> dict[str, str]:
        """`mask_targets` and the lines that load it."""
        targets = dict(enumerate(("background", *self.vocabulary.classes)))
        text = (
            "import fiftyone as fo\n\ndataset = fo.Dataset.from_dir(\n"
            '    dataset_dir=".", dataset_type=fo.types.ImageSegmentationDirectory, label_field="seeds")\n'
            f"dataset.default_mask_targets = {targets!r}\n"
        )
        return {"load.py": text}


class YoloExport(FolderExport):
    """YOLO's segments: a line of numbers for each thing, its outline in shares of the sides."""

    needs_superpixels = True
    images = f"images/{SPLIT}/{{id}}.{{ext}}"

    def add_mask(self, image: LabelledImage) -> None:
        """Its things as outlines. A hole is cut open to the outside: YOLO has one loop a line."""
        labels = image.labels()
        height, width = labels.shape
        lines = []
        for index, mask in image.things(labels):
            for loop in pixel_outlines(mask):
                # A quarter of a pixel in: tools that round and tools that cut off find the same one.
                points = loop if len(loop) > 2 else [*loop, *loop, *loop][:3]
                numbers = " ".join(f"{(x + 0.25) / width:.7f} {(y + 0.25) / height:.7f}" for x, y in points)
                lines.append(f"{index - 1} {numbers}")
        self.files.add(f"labels/{SPLIT}/{image.image_id}.txt", "".join(f"{line}\n" for line in lines).encode())

    def beside(self) -> dict[str, str]:
        """The names; numbers begin with 0, as YOLO has no background."""
        names, folder = dict(enumerate(self.vocabulary.classes)), f"images/{SPLIT}"
        told = {"path": ".", SPLIT: folder, "val": folder, "names": names}
        return {"data.yaml": yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
