"""The batches that prompts are learned from, drawn by Ray Data tasks on any node."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, UInt8

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.schemas import features_from_bytes
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.images.labelled import read_labelled
from fmwsss.jobs.prompts.views import view_of
from fmwsss.jobs.review.applied import Relabelled, relabel
from fmwsss.jobs.training.arrow_tensors import stacked
from fmwsss.jobs.training.drawing import DrawnSource

if TYPE_CHECKING:
    from torch import Tensor


# One view on its way from the task that drew it to the worker that learns from it.
DRAWN = pa.schema(
    [
        ("present", pa.list_(pa.int32())),  # class indices, from 1
        ("view", pa.binary()),  # pixels, or features as the cache has them
        ("labels", pa.binary()),  # the same view of the coarse seed, or null
    ]
)


@dataclass(frozen=True)
class Batch:
    """One worker's share of a batch; views either as pixels or as cached features.

    Attributes:
        shown: `fmwsss.core.prompts.losses.shows_class` of the labels.
    """

    images: UInt8[Tensor, "batch 3 crop crop"] | None
    features: tuple[Float[Tensor, "batch _ _"], ...]
    present: Bool[Tensor, "batch classes"]
    labels: UInt8[Tensor, "batch crop crop"] | None
    shown: Bool[Tensor, "batch"] | None = None


@dataclass(frozen=True)
class BatchSource(DrawnSource):
    """Where views come from and how they are drawn; small and picklable.

    Attributes:
        run: its `images/` are read, the seeds if there is a stage of them, and the features if they are cached.
        parts: names of the parts of `images/`.
        part_rows: how many images of each part can be learned from (`count_rows`).
        seed_stage: the stage whose label maps go with the images, or None.
        feature_stage: the stage that holds cached views, or None: then they are drawn anew in every epoch.
        feature_shapes: shapes of the arrays of one cached view.
        num_views: fixed views of each image in the cache; epoch after epoch takes the next of them.
        vocabulary: the classes.
        batch_size: images of all workers together.
        augment: keyword arguments of `fmwsss.core.prompts.augmentation.draw_view`.
        random_seed: the run's.
        labels: the stage that has the labels, as in `read_labelled`.
        relabelled: what people said of labels, by image.
    """

    run: Run
    parts: tuple[str, ...]
    part_rows: tuple[int, ...]
    seed_stage: str | None
    feature_stage: str | None
    feature_shapes: tuple[tuple[int, int], ...]
    num_views: int
    vocabulary: Vocabulary
    batch_size: int
    augment: dict[str, Any]
    random_seed: int
    labels: str = "images"
    relabelled: Mapping[str, Relabelled] = field(default_factory=dict)
    schema = DRAWN
    rows_at_once = 16

    def batches(
        self, first: int, last: int, rank: int, num_workers: int, num_tasks: int = 1
    ) -> Generator[Batch, None, None]:
        """The share of worker `rank` in batches `first` to `last`, drawn by Ray Data tasks ahead of their use.

        Args:
            first: number of the first batch.
            last: number after the last one.
            rank: of this worker.
            num_workers: of the process group.
            num_tasks: parts at work at a time.

        Returns:
            A generator; closing it ends the tasks.
        """
        for table in self.tables(first, last, rank, num_workers, num_tasks):
            yield self._batch(table)

    def read_part(self, part: str, epoch: int) -> list[dict[str, Any]]:
        """See `DrawnSource`.

        Args:
            part: its name.
            epoch: counted from 0.
        """
        run, number = self.run, self._view_number(epoch)
        columns = ["image_id", "classes", *(["image"] if self.feature_stage is None else [])]
        rows = read_labelled(run, part, columns, self.labels)
        relabel(rows, self.relabelled)
        for stage, column in ((self.feature_stage, f"view_{number}"), (self.seed_stage, "seed")):
            if stage is not None:
                table = run.read_part(stage, part, columns=["image_id", column])
                by_id = dict(zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True))
                rows = [{**row, column: by_id[row["image_id"]]} for row in rows if row["image_id"] in by_id]
        return rows

    def draw(self, rows: list[dict[str, Any]], index: int, batch: int, epoch: int) -> dict[str, Any]:
        """See `DrawnSource`. In one epoch an image has one view, whatever batch it is in.

        Args:
            rows: of the window.
            index: of the image in them.
            batch: that it is in.
            epoch: counted from 0.
        """
        row, number = rows[index], self._view_number(epoch)
        labels = decode_label_png(row["seed"]) if self.seed_stage is not None else None
        drawn: dict[str, Any] = {"present": self.vocabulary.indices(row["classes"]), "view": row.get(f"view_{number}")}
        image = decode_rgb(row["image"], max_pixels=UNLIMITED) if self.feature_stage is None else None
        picture = image if image is not None else labels
        if picture is not None:
            height_px, width_px = picture.shape[:2]
            view = view_of(row["image_id"], height_px, width_px, number, self.random_seed, self.augment)
            if image is not None:
                drawn["view"] = view.of_image(image).numpy().tobytes()
            drawn["labels"] = view.of_labels(labels).numpy().tobytes() if labels is not None else None
        return drawn

    def _view_number(self, epoch: int) -> int:
        return epoch if self.feature_stage is None else epoch % self.num_views

    def _batch(self, table: pa.Table) -> Batch:
        import torch

        from fmwsss.core.prompts.losses import shows_class

        crop_px = self.augment["crop_px"]
        present = torch.zeros(len(table), len(self.vocabulary.classes), dtype=torch.bool)
        for indices, own in zip(table["present"].to_pylist(), present, strict=True):
            own[[index - 1 for index in indices]] = True
        images, features, labels = None, (), None
        if self.feature_stage is None:
            images = stacked(table["view"], 3, crop_px, crop_px)
        else:
            arrays = [features_from_bytes(view, *self.feature_shapes) for view in table["view"].to_pylist()]
            features = tuple(torch.from_numpy(np.stack(kept)) for kept in zip(*arrays, strict=True))
        if self.seed_stage is not None:
            labels = stacked(table["labels"], crop_px, crop_px)
        return Batch(images, features, present, labels, shows_class(labels) if labels is not None else None)
