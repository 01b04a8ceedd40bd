"""A dataset as Hugging Face's `datasets` loads it: Parquet files with features, and a card."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import yaml

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.parquet import table_bytes
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.exporters.labelled_images import LabelledImage

PART_BYTES = 256 << 20
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class HuggingFaceExport:
    """`data/train-*.parquet` with image, label map and classes, and README.md."""

    needs_superpixels = False

    def __init__(self, folder: Folder, vocabulary: Vocabulary, about: dict[str, Any]) -> None:
        self._folder, self._vocabulary, self._about = folder, vocabulary, about
        names = {"names": list(vocabulary.classes), "_type": "ClassLabel"}
        features = {
            "image_id": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}, "label": {"_type": "Image"},
            "classes": {"feature": names, "_type": "List"}, "confidence": {"dtype": "float32", "_type": "Value"},
            "origin": {"dtype": "string", "_type": "Value"},
        }  # fmt: skip
        about_features = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        self._schema = pa.schema(
            [("image_id", pa.string()), ("image", _IMAGE), ("label", _IMAGE), ("classes", pa.list_(pa.int64())),
             ("confidence", pa.float32()), ("origin", pa.string())], metadata=about_features
        )  # fmt: skip
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = self._num_images = self._num_parts = 0

    def add(self, image: LabelledImage) -> None:
        """One image as a row."""
        data = image.upright()
        self._num_images += 1
        self._num_bytes += len(data) + len(image.png)
        self._rows.append(
            {
                "image_id": image.image_id,
                "image": {"bytes": data, "path": image.file_name()},
                "label": {"bytes": image.png, "path": f"{image.image_id}.png"},
                "classes": [self._vocabulary.classes.index(name) for name in image.classes],
                "confidence": image.confidence,
                "origin": image.origin,
            }
        )
        if self._num_bytes > PART_BYTES:
            self._write_part()

    def _write_part(self) -> None:
        self._folder.write(f"data/train-{self._num_parts:05d}.parquet", table_bytes(self._rows, self._schema))
        self._rows, self._num_bytes, self._num_parts = [], 0, self._num_parts + 1

    def finish(self) -> str:
        """Writes the last part and the card; what was written, in words."""
        if self._rows:
            self._write_part()
        self._folder.write("README.md", self._card().encode())
        return f"{self._num_images} rows in {self._num_parts} Parquet files"

    def _card(self) -> str:
        told = {"task_categories": ["image-segmentation"], "license": "other", "tags": ["pseudo-labels", "fmwsss"]}
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(("background", *self._vocabulary.classes)))
        settings = json.dumps(self._about["settings"], indent=2, ensure_ascii=False)
        return (
            f"---\n{yaml.safe_dump(told, sort_keys=False)}---\n\n# {self._about['description']}\n\n"
            f"Label maps made by program from image-level labels ({self._about['stage']}), not by people: the "
            "method is that of FMA-WSSS (arXiv 2312.03585).\n\n"
            "Images and image-level labels come from the dataset named in the settings below; its licence holds for "
            "the images, and should be written here before this is given to others.\n\n"
            f"Indices of `label`: {classes}; 255 is ignored. `classes` are the labels of the image, from 0 on. "
            "`confidence` is the mean of the pixels; `origin` is `program`, or what a person did: `corrected`, "
            "`accepted`.\n\n"
            f"## Settings\n\n```json\n{settings}\n```\n"
        )
