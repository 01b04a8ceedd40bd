"""A run in a notebook: `run = fmwsss.open(RUN)`; `run.seeds[image_id]` shows itself."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmwsss.core.images import UNLIMITED, decode_rgb
from fmwsss.core.overlays import with_labels
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.view.opened_run import NotThere, OpenedRun, colour_of
from fmwsss.jobs.view.selection import Selection

SHOWN_PX = 480  # the long side of a picture in a notebook


@dataclass(frozen=True)
class SeedOfImage:
    """The seed of one image; in a notebook it shows itself over the photograph.

    Attributes:
        image_id: in the run.
        image: RGB, upright.
        labels: class indices; 0 is background, 255 ignored.
        classes: labels of the image.
        names: of the classes that have a pixel, by index.
        confidence: mean of its pixels; None where there is none.
        missing: labels without a pixel.
    """

    image_id: str
    image: UInt8[np.ndarray, "height width 3"] = field(repr=False)
    labels: UInt8[np.ndarray, "height width"] = field(repr=False)
    classes: tuple[str, ...]
    names: dict[int, str]
    confidence: float | None
    missing: tuple[str, ...]

    def picture(self) -> Image.Image:
        """Photograph and seed side by side."""
        pair = np.concatenate([self.image, with_labels(self.image, self.labels)], axis=1)
        picture = Image.fromarray(pair)
        picture.thumbnail((2 * SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
        return picture

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()


class Seeds(Mapping[str, SeedOfImage]):
    """The seeds of a run by image id; each is read when it is asked for."""

    def __init__(self, opened: OpenedRun, layer: str) -> None:
        self._opened, self._layer = opened, layer

    def __getitem__(self, image_id: str) -> SeedOfImage:
        """The seed of an image.

        Raises:
            KeyError: there is no seed of this image.
        """
        opened, stage = self._opened, f"seeds/{self._layer}"
        try:
            labels = opened.labels(self._layer, image_id)
            row = opened.row(stage, image_id, "classes", "mean_confidence", "missing")
            image = opened.row("images", image_id, "image")
        except NotThere as error:
            raise KeyError(str(error)) from None
        if labels is None or row is None or image is None:
            raise KeyError(f"image {image_id!r} has no {self._layer} seed; see `run.failures`")
        own = opened.vocabulary.classes
        present = [int(index) for index in np.unique(labels) if 0 < index <= len(own)]
        return SeedOfImage(
            image_id, decode_rgb(image["image"], max_pixels=UNLIMITED), labels, tuple(row["classes"]),
            {index: own[index - 1] for index in present}, row["mean_confidence"], tuple(row["missing"] or ()),
        )  # fmt: skip

    def __iter__(self) -> Iterator[str]:
        failed = self._opened.index.failures
        return (image_id for image_id in self._opened.index.snapshot.ids.to_pylist() if image_id not in failed)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class NotebookRun:
    """A run, read only.

    Attributes:
        seeds: the fine seeds by image id.
        coarse: the coarse ones.
        failures: what stages said of images that they could not use, by image id.
        vocabulary: the classes.
    """

    def __init__(self, url: str) -> None:
        self._opened = OpenedRun(url)
        self._opened.index.read_all()
        self._opened.standing()
        self.seeds, self.coarse = Seeds(self._opened, "fine"), Seeds(self._opened, "coarse")
        self.failures = self._opened.index.failures

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes."""
        return self._opened.vocabulary

    def find(self, **query: Any) -> list[str]:
        """Ids of images, as an address of `fmwsss view` names them.

        Args:
            query: such as `sort="iou"`, `missing="any"`, `confidence_max=0.4`; `class_` is a class.

        Returns:
            Ids, in the order that was asked for.

        Raises:
            InputError: there is no such order or class.
        """
        words = {key.rstrip("_"): str(value) for key, value in query.items()}
        snapshot = self._opened.index.snapshot
        rows = Selection.from_query(words).rows(snapshot, self.vocabulary)
        return [snapshot.ids[int(row)].as_py() for row in rows]

    def __len__(self) -> int:
        return len(self._opened.index.snapshot)

    def __repr__(self) -> str:
        return f"<run {self._opened.run.folder.url}: {len(self)} images, {len(self.failures)} failed>"

    def _repr_html_(self) -> str:
        snapshot = self._opened.index.snapshot
        counts = np.bincount(snapshot.labels[1], minlength=1 + len(self.vocabulary.classes))
        rows = "".join(
            f'<tr><td style="border-left: 1em solid {colour_of(index)}">{html.escape(name)}</td>'
            f"<td>{int(counts[index])}</td></tr>"
            for index, name in enumerate(self.vocabulary.classes, start=1)
            if counts[index]
        )
        return f"<p>{html.escape(repr(self))}</p><table><tr><th>class</th><th>images</th></tr>{rows}</table>"
