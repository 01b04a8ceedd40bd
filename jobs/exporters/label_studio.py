"""Label Studio: a task for each image, with the seed as a prediction that a person corrects with the brush."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.exporters.files import FileBatch, JsonLists
from fmwsss.jobs.exporters.labelled_images import LabelledImage

_SIZES = (3, 4, 8, 16)  # bits of a length, by the two bits before it


class LabelStudioExport:
    """`tasks.json` beside `images/` and `label_config.xml`."""

    needs_superpixels = True

    def __init__(self, folder: Folder, vocabulary: Vocabulary, about: dict[str, Any]) -> None:
        self._folder, self._vocabulary, self._about = folder, vocabulary, about
        self._files, self._tasks = FileBatch(folder), JsonLists("tasks")
        self._num_images = 0

    def add(self, image: LabelledImage) -> None:
        """One image as a task."""
        labels = image.labels()
        height, width = labels.shape
        self._num_images += 1
        name = image.file_name()
        self._files.add(f"images/{name}", image.upright())
        results = []
        for number, (index, mask) in enumerate(image.things(labels)):
            value = {"format": "rle", "rle": brush_rle(mask), "brushlabels": [self._vocabulary.classes[index - 1]]}
            results.append(
                {"id": f"{self._num_images}-{number}", "type": "brushlabels", "from_name": "tag", "to_name": "image",
                 "original_width": width, "original_height": height, "image_rotation": 0, "value": value}
            )  # fmt: skip
        prediction: dict[str, Any] = {"model_version": "fmwsss", "result": results}
        if image.confidence is not None:
            prediction["score"] = round(image.confidence, 4)
        url = f"/data/local-files/?d=images/{name}"
        self._tasks.add("tasks", {"data": {"image": url, "image_id": image.image_id}, "predictions": [prediction]})

    def finish(self) -> str:
        """Writes tasks and configuration; what was written, in words."""
        labels = "".join(f'\n    <Label value="{_escaped(name)}"/>' for name in self._vocabulary.classes)
        config = (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="tag" toName="image">{labels}\n  </BrushLabels>\n</View>\n'
        )
        self._files.add("label_config.xml", config.encode())
        self._files.flush()
        self._tasks.write(self._folder, "tasks.json", {}, as_list=True)
        return f"{self._num_images} tasks in tasks.json"


def brush_rle(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """A mask in the run lengths of Label Studio's brush: of its RGBA values, row by row, as bytes.

    32 bits of how many values there are, 5 of a value's bits less one, 4 of each of the sizes of lengths less one; then
    for each run a bit (1: a value that repeats), two bits of which size, the length less one, and the value of 8 bits.
    """
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4)
    bits = [_bits(len(values), 32), _bits(7, 5), *(_bits(size - 1, 4) for size in _SIZES)]
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = _bits(int(values[start]), 8)
        left = length
        while left:
            own = min(left, 1 << _SIZES[-1])
            size = next(number for number, width in enumerate(_SIZES) if own <= 1 << width)
            bits += [_bits(1, 1), _bits(size, 2), _bits(own - 1, _SIZES[size]), value]
            left -= own
    return np.packbits(np.concatenate(bits)).tolist()


def _bits(value: int, width: int) -> UInt8[np.ndarray, " bits"]:
    return np.array([(value >> (width - 1 - place)) & 1 for place in range(width)], np.uint8)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
