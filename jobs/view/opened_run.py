"""A run that is looked at: its index, the rows of its images, what people said of them, and its pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import RECEIPT, Run
from fmwsss.core.errors import InputError
from fmwsss.core.labels import PALETTE
from fmwsss.core.seeds.corrections import PaintedRegion
from fmwsss.jobs.review.corrections import ReviewLog, Standing, standing
from fmwsss.jobs.run_layout import PREDICTED, REFINED, vocabulary_of
from fmwsss.jobs.view import layers
from fmwsss.jobs.view.run_index import RunIndex
from fmwsss.jobs.view.stored_rows import BoundedCache, StoredRows

PICTURE_BYTES = 64 << 20
NUM_PICTURES_AT_ONCE = 4
LOOK_AGAIN_S = 2.0  # at what other people have said since
MAPS = ("grid_height", "grid_width", "classes")
# layer -> stage and column of label maps
LABELS = {
    "fine": ("seeds/fine", "seed"),
    "coarse": ("seeds/coarse", "seed"),
    "refined": (REFINED, "labels"),
    "prediction": (PREDICTED, "labels"),
    "truth": ("images", "truth"),
}
LAYERS = ("fine", "refined", "prediction", "coarse", "map", *layers.LEVELS, "doubt", "truth")


class NotThere(InputError):  # noqa: N818 - the name says what happened
    """An image or a picture that this run does not have."""


class OpenedRun:
    """One run, read only.

    Attributes:
        run: the run folder.
        vocabulary: its classes.
        index: of its images.
        rows: of its tables.
        log: of corrections.
        stamp: of what the seeds were when it was opened.
    """

    def __init__(self, url: str) -> None:
        self.log = ReviewLog(Folder(url))
        self._open(Folder(url))
        self._standing: dict[str, Standing] = {}
        self._looked_s = -LOOK_AGAIN_S
        self._lock = threading.Lock()

    def _open(self, folder: Folder) -> None:
        self.run = Run(folder)
        self.vocabulary = vocabulary_of(self.run)
        self.index = RunIndex.begin(self.run, self.vocabulary)
        self.rows = StoredRows(self.run)
        self.stamp = self._stamp_now()
        self._pictures: BoundedCache[bytes] = BoundedCache(PICTURE_BYTES, len, NUM_PICTURES_AT_ONCE)

    def _stamp_now(self) -> str:
        """Changes when the stage that is gone through is made again: files of the same names have other rows then."""
        folder = self.run.folder.child(self.index.base)
        return folder.sha256(RECEIPT)[:8] if folder.exists(RECEIPT) else ""

    def look_again(self) -> None:
        """Opens the run again if its seeds were made again since."""
        if self._stamp_now() != self.stamp:
            self._open(self.run.folder)
            self.index.start()

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.run.folder.url.rstrip("/").rpartition("/")[2]

    def standing(self, is_fresh: bool = True) -> dict[str, Standing]:
        """What people said, by image; other people's words are at most LOOK_AGAIN_S old.

        Args:
            is_fresh: look at the folder where that is due.
        """
        with self._lock:
            if is_fresh and time.monotonic() - self._looked_s >= LOOK_AGAIN_S:
                self._standing = standing(self.log.rows())
                self._looked_s = time.monotonic()
            return self._standing

    def noted(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Takes in a file of corrections that was just written.

        Args:
            name: of the file.
            rows: in it.
        """
        with self._lock:
            self.log.note(name, rows)
            self._standing = standing(self.log.known_rows())

    def part_of(self, image_id: str) -> str:
        """The part of an image.

        Raises:
            NotThere: there is no such image.
        """
        part = self.index.part_of(image_id)
        if part is None:
            raise NotThere(f"there is no image {image_id[:80]!r} in this run")
        return part

    def row(self, stage: str, image_id: str, *columns: str) -> dict[str, Any] | None:
        """The row of an image in a stage; None where there is none.

        Args:
            stage: name.
            image_id: of the image.
            columns: that are read.
        """
        return self.rows.row(stage, self.part_of(image_id), image_id, columns)

    def size_px(self, image_id: str) -> tuple[int, int]:
        """Height and width of an image.

        Raises:
            NotThere: it was not taken into the run.
        """
        row = self.row("images", image_id, "height_px", "width_px")
        if row is None:
            raise NotThere(f"image {image_id[:80]!r} was not taken into this run")
        return row["height_px"], row["width_px"]

    def layers_of(self, image_id: str) -> list[str]:
        """Names of the layers that there are of an image."""
        found = [
            name for name, (stage, column) in LABELS.items() if (self.row(stage, image_id, column) or {}).get(column)
        ]
        seed = self.row("seeds/fine", image_id, "cam", "confidence") or {}
        found += ["map"] if seed.get("cam") is not None else []
        found += ["doubt"] if seed.get("confidence") else []
        if self.row("superpixels", image_id, "level"):
            found += [*layers.LEVELS]
        return [name for name in LAYERS if name in found]

    def labels(self, layer: str, image_id: str) -> np.ndarray | None:
        """A label map; the fine one with what people painted since it was made.

        Args:
            layer: one of LABELS.
            image_id: of the image.

        Returns:
            Class indices; None where there is none.
        """
        stage, column = LABELS[layer]
        row = self.row(stage, image_id, column)
        if row is None or row[column] is None:
            return None
        labels = layers.labels_of(row[column])
        if layer != "fine":
            return labels
        for region in self.regions(image_id):
            if (region.height_px, region.width_px) == labels.shape:
                labels[region.mask()] = region.class_index
        return labels

    def regions(self, image_id: str) -> tuple[PaintedRegion, ...]:
        """What people painted on an image, the latest last."""
        own = self.standing(is_fresh=False).get(image_id)
        return own.regions(self.vocabulary) if own else ()

    def superpixels(self, image_id: str) -> layers.Superpixels:
        """The superpixels of an image.

        Raises:
            NotThere: it has none.
        """
        row = self.row("superpixels", image_id, *SUPERPIXEL_COLUMNS)
        if row is None:
            raise NotThere(f"image {image_id[:80]!r} has no superpixels in this run")
        return layers.superpixels_of(row)

    def picture(self, layer: str, image_id: str) -> bytes:
        """A layer as a PNG, the photograph as a WebP; an image or a layer that is not there raises NotThere.

        Args:
            layer: one of LAYERS, or `image`.
            image_id: of the image.
        """
        return self._pictures.get(self._key("layer", layer, image_id), lambda: self._picture(layer, image_id))

    def thumbnail(self, layer: str, image_id: str) -> bytes:
        """A small WebP of the photograph with one layer over it, where there is one; raises as `picture`.

        Args:
            layer: one of LAYERS, or `image`.
            image_id: of the image.
        """
        return self._pictures.get(self._key("thumbnail", layer, image_id), lambda: self._thumbnail(layer, image_id))

    def _key(self, kind: str, layer: str, image_id: str) -> tuple[Any, ...]:
        own = self.standing(is_fresh=False).get(image_id)
        return kind, layer, image_id, own.painted_key if own and layer == "fine" else ()

    def _picture(self, layer: str, image_id: str) -> bytes:
        if layer == "image":
            return layers.photograph(self._encoded(image_id))
        if layer in LABELS:
            labels = self.labels(layer, image_id)
            if labels is not None:
                return layers.labels_png(labels)
        elif layer in layers.LEVELS:
            return layers.superpixels_png(self.superpixels(image_id), layers.LEVELS[layer])
        elif layer == "map" and (row := self.row("seeds/fine", image_id, *MAPS, "cam")):
            return layers.map_png(layers.maps_of(row, "cam"), *self.size_px(image_id))
        elif layer == "doubt" and (row := self.row("seeds/fine", image_id, "confidence")) and row["confidence"]:
            return layers.doubt_png(row["confidence"])
        raise NotThere(f"there is no layer {layer[:40]!r} of image {image_id[:80]!r}")

    def _thumbnail(self, layer: str, image_id: str) -> bytes:
        data, paint = self._encoded(image_id), None
        if layer in LABELS and (labels := self.labels(layer, image_id)) is not None:
            paint = layers.painted(labels)
        elif layer == "map" and (row := self.row("seeds/fine", image_id, *MAPS, "cam")):
            paint = layers.heated(row, "cam")
        return layers.thumbnail(data, paint)

    def _encoded(self, image_id: str) -> bytes:
        row = self.row("images", image_id, "image")
        if row is None:
            raise NotThere(f"image {image_id[:80]!r} was not taken into this run")
        return row["image"]


SUPERPIXEL_COLUMNS = ("height_px", "width_px", "level", "predicted_iou", "stability", "rle")


def colour_of(class_index: int) -> str:
    """The colour of a class as CSS has it."""
    return "#" + "".join(f"{value:02x}" for value in PALETTE[class_index])


def plain(number: Any) -> float | None:
    """A number for JSON, which has no NaN."""
    return round(float(number), 4) if np.isfinite(number) else None


def verdicts(own: Mapping[str, Standing]) -> dict[str, str]:
    """The verdict of each image that people said something of."""
    return {image_id: each.verdict for image_id, each in own.items()}
