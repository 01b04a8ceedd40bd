"""The actor classes that hold models: blocks of decoded images in, blocks of their results out. No formulas."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from fmwsss.cluster.execution.machine_faults import kind_of
from fmwsss.cluster.execution.rows import map_rows
from fmwsss.cluster.models.device import use_threads
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.pixels import pixels_of
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.schemas import (
    MAPS_PAYLOAD,
    maps_to_bytes,
)

if TYPE_CHECKING:
    from fmwsss.core.vocabulary import Vocabulary


# The attention of so many photographs, at scale 1, fits beside a ViT-B/16 in 8 GB.
IMAGES_PER_BATCH = 8


@contextlib.contextmanager
def _told_alone() -> Iterator[None]:
    """Leaves an error of one of several images to the moment when that image is alone."""
    try:
        yield
    except Exception as error:
        if kind_of(error) == "machine":
            raise


class ClipReplica:
    """A frozen CLIP with one set of learned prompts, embedded once, that turns decoded images into class maps."""

    def __init__(
        self,
        spec: ModelSpec,
        vocabulary: Vocabulary,
        prompts: tuple[Folder, str],
        box_threshold: float | None,
        num_sinkhorn: int,
        scales: tuple[float, ...],
        num_attention_blocks: int,
        stage: str,
        num_threads: int,
        box_on: Literal["map", "result"] = "map",
        affinity_map: Literal["normalised", "raw"] = "normalised",
    ) -> None:
        import torch

        from fmwsss.core.adaptive_batch import FittingBatch
        from fmwsss.core.prompts.learner import PromptLearner

        use_threads(num_threads)
        self.clip = load_clip(spec)
        self.vocabulary = vocabulary
        folder, name = prompts
        with torch.no_grad():
            learner = PromptLearner.from_bytes(self.clip, vocabulary, folder.read(name))
            self.foreground, self.background = learner()
        self.settings = (box_threshold, num_sinkhorn, scales, num_attention_blocks)
        self.affinity: dict[str, Any] = {"box_on": box_on, "affinity_map": affinity_map}
        # Attention grows with the fourth power of the scale.
        self.images_per_batch = max(1, int(IMAGES_PER_BATCH / max(1.0, *scales) ** 4))
        # For each patch grid: two panoramas that are too many do not make photographs go one by one.
        self.fitting: defaultdict[tuple[int, int], FittingBatch] = defaultdict(
            lambda: FittingBatch(self.images_per_batch)
        )
        self.stage = stage

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED_PAYLOAD rows in, MAPS_PAYLOAD rows out; an image without classes has none and costs nothing."""
        ready: dict[str, dict[str, Any]] = {}
        for grid, rows in self._batches(block):
            # An error is that of one image: alone, below, it becomes that image's failure.
            with _told_alone():
                maps = itertools.chain.from_iterable(self.fitting[grid].run(self._map_classes, rows))
                ready.update(zip((row["image_id"] for row in rows), maps, strict=True))

        def maps_of(row: dict[str, Any]) -> dict[str, Any]:
            if not row["classes"]:
                size = {"height_px": row["height_px"], "width_px": row["width_px"], "grid_height": 0, "grid_width": 0}
                return {**size, "classes": [], "cam": b"", "refined_cam": b""}
            return ready.get(row["image_id"]) or self._map_classes([row])[0]

        return map_rows(block, maps_of, MAPS_PAYLOAD, self.stage)

    def _batches(self, block: pa.Table) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
        """Images of one patch grid, and the grid, a few at a time; of a shard always the same ones."""
        from fmwsss.core.class_maps.clip_maps import patch_grid

        table = block.select(["image_id", "height_px", "width_px", "classes"])
        by_grid: dict[tuple[int, int], list[int]] = {}
        for number, row in enumerate(table.to_pylist()):
            if row["height_px"] is not None and row["classes"]:
                by_grid.setdefault(patch_grid(self.clip, row["height_px"], row["width_px"]), []).append(number)
        for grid, numbers in by_grid.items():
            for begin in range(0, len(numbers), self.images_per_batch):
                yield grid, block.take(numbers[begin : begin + self.images_per_batch]).to_pylist()

    def _map_classes(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from fmwsss.core.class_maps.clip_maps import map_classes

        indices = [sorted(self.vocabulary.indices(row["classes"])) for row in rows]
        images = [pixels_of(row) for row in rows]
        found = map_classes(
            self.clip, images, indices, self.foreground, self.background, *self.settings, **self.affinity
        )
        return [
            {
                "height_px": row["height_px"],
                "width_px": row["width_px"],
                "classes": [self.vocabulary.classes[index - 1] for index in own],
                "grid_height": maps.cam.shape[1],
                "grid_width": maps.cam.shape[2],
                "cam": maps_to_bytes(maps.cam),
                "refined_cam": maps_to_bytes(maps.refined_cam),
            }
            for row, own, maps in zip(rows, indices, found, strict=True)
        ]
