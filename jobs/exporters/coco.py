"""COCO's json files: instances with run lengths or polygons, and panoptic segments."""

from __future__ import annotations

from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.exporters.files import FileBatch, JsonLists
from fmwsss.jobs.exporters.labelled_images import LabelledImage
from fmwsss.jobs.exporters.outlines import corner_outlines


class _CocoFiles:
    """What both kinds of COCO's json have: `images/`, a record of each image, categories, annotations."""

    needs_superpixels = True
    json_name: ClassVar[str]
    word: ClassVar[str]  # for what is counted beside the images

    def __init__(self, folder: Folder, vocabulary: Vocabulary, about: dict[str, Any]) -> None:
        self._folder, self._about = folder, about
        self._categories = categories_of(vocabulary)
        self._files, self._lists = FileBatch(folder), JsonLists("images", "annotations")
        self._num_images = self._num_things = 0

    def add_image(self, image: LabelledImage) -> UInt8[np.ndarray, "height width"]:
        """Its file and its record; its labels are returned."""
        labels = image.labels()
        height, width = labels.shape
        self._num_images += 1
        name = image.file_name()
        self._files.add(f"images/{name}", image.upright())
        self._lists.add("images", {"id": self._num_images, "file_name": name, "height": height, "width": width})
        return labels

    def finish(self) -> str:
        """Writes the json; what was written, in words."""
        self._files.flush()
        head = {"info": self._about, "licenses": [], "categories": self._categories}
        self._lists.write(self._folder, self.json_name, head)
        return f"{self._num_images} images and {self._num_things} {self.word} in {self.json_name}"


class CocoExport(_CocoFiles):
    """`annotations.json` beside `images/`: a category for each class, an annotation for each thing."""

    json_name, word = "annotations.json", "annotations"

    def __init__(self, folder: Folder, vocabulary: Vocabulary, about: dict[str, Any], polygons: bool = False) -> None:
        super().__init__(folder, vocabulary, about)
        self._polygons = polygons

    def add(self, image: LabelledImage) -> None:
        """One image and its annotations."""
        labels = self.add_image(image)
        for index, mask in image.things(labels):
            self._num_things += 1
            about = {"id": self._num_things, "image_id": self._num_images, "category_id": index, "iscrowd": 0}
            rle = _rle_of(mask)
            outline: Any = rle
            if self._polygons:
                outline = [[float(value) for point in loop for value in point] for loop in corner_outlines(mask)]
            encoded: Any = {**rle, "counts": rle["counts"].encode()}
            box = [float(value) for value in coco_mask.toBbox(encoded)]
            told = {**about, "segmentation": outline, "area": float(mask.sum()), "bbox": box}
            if image.confidence is not None:
                told["score"] = round(image.confidence, 4)
            self._lists.add("annotations", told)


class PanopticExport(_CocoFiles):
    """`panoptic.json` beside `panoptic/*.png` (ids as colours) and `images/`."""

    json_name, word = "panoptic.json", "segments"

    def add(self, image: LabelledImage) -> None:
        """One image and its segments."""
        labels = self.add_image(image)
        ids, segments = np.zeros(labels.shape, np.uint32), []
        for number, (index, mask) in enumerate(image.things(labels), start=1):
            ids[mask] = number
            self._num_things += 1
            rows, columns = np.nonzero(mask)
            box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            segments.append({"id": number, "category_id": index, "area": int(mask.sum()), "bbox": box, "iscrowd": 0})
        buffer = BytesIO()
        rgb = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(buffer, "PNG")
        self._files.add(f"panoptic/{image.image_id}.png", buffer.getvalue())
        own = {"image_id": self._num_images, "file_name": f"{image.image_id}.png", "segments_info": segments}
        self._lists.add("annotations", own)


def categories_of(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The classes with their indices as ids."""
    names = enumerate(vocabulary.classes, start=1)
    return [{"id": index, "name": name, "supercategory": "thing", "isthing": 1} for index, name in names]


def _rle_of(mask: np.ndarray) -> dict[str, Any]:
    rle: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
