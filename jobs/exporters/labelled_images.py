"""What every export is made of: the images of a run with the label maps of one of its stages, part by part."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.core.errors import InputError
from fmwsss.core.images import decode_label_png
from fmwsss.core.schemas import superpixels_from_row
from fmwsss.core.seeds.instances import instances_of
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.jobs.run_layout import PREDICTED, REFINED

PROGRAM = "program"
NUM_AHEAD = 3  # parts that are read while one is written
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "gif",
              "PPM": "ppm", "JPEG2000": "jp2", "AVIF": "avif", "HEIF": "heic"}  # fmt: skip


class ExportError(InputError):
    """A run that cannot be exported as it is asked; one line."""


@dataclass(frozen=True)
class LabelledImage:
    """One image with its labels.

    Attributes:
        image_id: in the run.
        image: the encoded file, as it came.
        png: the label map as a palette PNG of class indices.
        classes: that are labels of the image.
        confidence: mean of its pixels; None where the stage has none.
        superpixels: of the image; None where they are not asked for.
        superpixel_class: class index of each.
        origin: `program`; `corrected` or `accepted` where a person said so.
    """

    image_id: str
    image: bytes
    png: bytes
    classes: tuple[str, ...]
    confidence: float | None
    superpixels: Superpixels | None = None
    superpixel_class: tuple[int, ...] | None = None
    origin: str = PROGRAM

    def labels(self) -> UInt8[np.ndarray, "height width"]:
        """The class indices of its pixels."""
        return decode_label_png(self.png)

    def things(
        self, labels: UInt8[np.ndarray, "height width"]
    ) -> Iterator[tuple[int, Bool[np.ndarray, "height width"]]]:
        """Class index and pixels of each thing (`instances_of`); `labels` are those of `labels()`, decoded once."""
        return instances_of(labels, self.superpixels, self.superpixel_class)

    def file_name(self) -> str:
        """Its id with the extension of what it is."""
        with Image.open(BytesIO(self.image)) as opened:
            return f"{self.image_id}.{EXTENSIONS.get(opened.format or '', 'img')}"

    def upright(self) -> bytes:
        """The encoded image; one that is stored turned is turned and encoded again, so that its labels lie on it."""
        from PIL import ImageOps

        with Image.open(BytesIO(self.image)) as opened:
            if opened.getexif().get(0x0112, 1) in (None, 0, 1):
                return self.image
            turned, buffer = ImageOps.exif_transpose(opened), BytesIO()
            kind = opened.format if opened.format in ("JPEG", "PNG", "WEBP", "TIFF") else "PNG"
            turned.save(buffer, kind, **({"quality": 97} if kind in ("JPEG", "WEBP") else {}))
            return buffer.getvalue()


def stage_to_export(run: Run, of: str | None) -> tuple[Run, str, Receipt]:
    """The run and the stage in it whose labels are exported.

    Args:
        run: the run folder.
        of: `seeds/fine`, or `predictions/NAME`; None takes the best that is complete of seeds.

    Raises:
        ExportError: it is not complete; the line tells what is.
    """
    words = [of] if of else ["seeds/fine", "seeds/coarse"]
    for word in words:
        own, local = (run, word)
        if word.startswith("predictions/"):
            own = Run(run.folder.child(f"predictions/{word.split('/')[1]}"))
            local = REFINED if own.receipt(REFINED) else PREDICTED
        if receipt := own.receipt(local):
            return own, local, receipt
    raise ExportError(f"{' and '.join(words)} of {run.folder.url} is not complete: there is nothing to convert yet")


def labelled_images(
    run: Run,
    stage: str,
    receipt: Receipt,
    with_superpixels: bool,
    only: Container[str] | None = None,
    origins: Mapping[str, str] | None = None,
) -> Iterator[LabelledImage]:
    """The images of a stage in their order; a few parts are in memory at a time.

    Args:
        run: the run folder.
        stage: whose label maps they get, such as `seeds/fine`.
        receipt: of the stage, with the names of its parts.
        with_superpixels: read the superpixels too, where the run has them.
        only: ids of the images that are meant; None for all.
        origins: of images that a person said something of.

    Yields:
        Each image that has a row in the stage.
    """

    def read(part: str) -> list[LabelledImage]:
        return _read(run, stage, part, with_superpixels, only, origins or {})

    with ThreadPoolExecutor(NUM_AHEAD) as pool:
        parts = iter(receipt.parts)
        waiting = [pool.submit(read, part) for part in islice(parts, NUM_AHEAD)]
        while waiting:
            images = waiting.pop(0).result()
            waiting += [pool.submit(read, part) for part in islice(parts, 1)]
            yield from images


def _read(
    run: Run,
    stage: str,
    part: str,
    with_superpixels: bool,
    only: Container[str] | None,
    origins: Mapping[str, str],
) -> list[LabelledImage]:
    is_seed = stage.startswith("seeds/")
    column = "seed" if is_seed else "labels"
    columns = ["image_id", column, "classes", "mean_confidence", *(["superpixel_class"] if is_seed else [])]
    table = run.read_part(stage, part, columns=columns)
    rows = {row["image_id"]: row for row in table.to_pylist() if only is None or row["image_id"] in only}
    if not rows:
        return []
    images = run.read_part("images", part, columns=["image_id", "image"]).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    if with_superpixels and run.receipt("superpixels"):
        found = {row["image_id"]: row for row in run.read_part("superpixels", part).to_pylist()}
    return [
        LabelledImage(
            image["image_id"],
            image["image"],
            row[column],
            tuple(row["classes"] or ()),
            row["mean_confidence"],
            superpixels_from_row(found[image["image_id"]]) if image["image_id"] in found else None,
            tuple(row["superpixel_class"]) if row.get("superpixel_class") is not None else None,
            origins.get(image["image_id"], PROGRAM),
        )
        for image in images
        if (row := rows.get(image["image_id"]))
    ]
