"""The batches that prompts are learned from, drawn by Ray Data tasks on any node."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, UInt8

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.schemas import features_from_bytes
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.prompts.views import view_of
from fmwsss.jobs.training.arrow_tensors import stacked
from fmwsss.jobs.training.sampling import batches_per_epoch, places, windows

if TYPE_CHECKING:
    from torch import Tensor


ROWS_AT_ONCE = 16

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
class BatchSource:
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

    @property
    def num_images(self) -> int:
        """Images that can be learned from."""
        return sum(self.part_rows)

    @property
    def rows_per_batch(self) -> int:
        """Images of a batch; fewer than were asked for where there are not as many."""
        return min(self.batch_size, self.num_images)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch, at least one (`sampling.batches_per_epoch`)."""
        return batches_per_epoch(self.num_images, self.batch_size)

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
        # Not above: training steps run where there is no Ray too.
        from fmwsss.cluster.execution.shard_pipeline import stream_shards

        share = len(range(rank, self.rows_per_batch, num_workers))
        shards = list(windows(self.parts, self.part_rows, self.batch_size, self.random_seed, first, last))
        arguments = {"source": self, "first": first, "last": last, "rank": rank, "num_workers": num_workers}
        for table in stream_shards(shards, draw_window, arguments, share, num_tasks) if shards else ():
            yield self._batch(table)

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


def draw_window(
    block: pa.Table, source: BatchSource, first: int, last: int, rank: int, num_workers: int
) -> Iterator[pa.Table]:
    """A block that names one window in, one worker's rows of its batches out, in order (rows of DRAWN).

    Args:
        block: of one row.
        source: what batches are drawn of.
        first: number of the first batch.
        last: number after the last one.
        rank: of the worker.
        num_workers: of the process group.

    Returns:
        Tables of this worker's share, in the order of the batches.
    """
    (window,) = block.to_pylist()
    number = window["epoch"] if source.feature_stage is None else window["epoch"] % source.num_views
    rows = [row for part in window["parts"] for row in _read_part(source, part, number)]
    which = places(
        window, len(rows), source.num_images, source.batch_size, source.random_seed, first, last, rank, num_workers
    )
    mine = [rows[row] for _, row in which]
    for begin in range(0, len(mine), ROWS_AT_ONCE):
        drawn = [_draw(source, row, number) for row in mine[begin : begin + ROWS_AT_ONCE]]
        yield pa.Table.from_pylist(drawn, schema=DRAWN)
    if not mine:
        yield DRAWN.empty_table()


def _read_part(source: BatchSource, part: str, number: int) -> list[dict[str, Any]]:
    """What the views of one part are drawn from; images that lack a seed or features are left out."""
    run = source.run
    columns = ["image_id", "classes", *(["image"] if source.feature_stage is None else [])]
    rows = run.read_part("images", part, columns).to_pylist()
    for stage, column in ((source.feature_stage, f"view_{number}"), (source.seed_stage, "seed")):
        if stage is not None:
            table = run.read_part(stage, part, columns=["image_id", column])
            by_id = dict(zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True))
            rows = [{**row, column: by_id[row["image_id"]]} for row in rows if row["image_id"] in by_id]
    return rows


def _draw(source: BatchSource, row: dict[str, Any], number: int) -> dict[str, Any]:
    labels = decode_label_png(row["seed"]) if source.seed_stage is not None else None
    drawn: dict[str, Any] = {"present": source.vocabulary.indices(row["classes"]), "view": row.get(f"view_{number}")}
    image = decode_rgb(row["image"], max_pixels=UNLIMITED) if source.feature_stage is None else None
    picture = image if image is not None else labels
    if picture is not None:
        height_px, width_px = picture.shape[:2]
        view = view_of(row["image_id"], height_px, width_px, number, source.random_seed, source.augment)
        if image is not None:
            drawn["view"] = view.of_image(image).numpy().tobytes()
        drawn["labels"] = view.of_labels(labels).numpy().tobytes() if labels is not None else None
    return drawn
