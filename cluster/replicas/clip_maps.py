"""The actor classes that hold models: blocks of decoded images in, blocks of their results out. No formulas."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow as pa

from fmwsss.cluster.execution.machine_faults import kind_of
from fmwsss.cluster.execution.rows import map_rows
from fmwsss.cluster.models.device import use_threads
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.pixels import pixels_of
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.schemas import LOOKS_PAYLOAD, MAPS_PAYLOAD, given_from_row, looks_row, maps_row

if TYPE_CHECKING:
    from torch import Tensor

    from fmwsss.core.adaptive_batch import FittingBatch
    from fmwsss.core.class_maps.clip_maps import Looks
    from fmwsss.core.vocabulary import Vocabulary


IMAGES_PER_BATCH = 8  # at the most; fewer of images with many patches


@contextlib.contextmanager
def _told_alone() -> Iterator[None]:
    """Leaves an error of one of several images to the moment when that image is alone."""
    try:
        yield
    except Exception as error:
        if kind_of(error) == "machine":
            raise


class ClipReplica:
    """A frozen CLIP with one set of prompts, embedded once, that turns decoded images into class maps.

    `prompts` is the folder and file of learned ones, or the templates of hand-made ones; `source` is what
    `fmwsss.core.class_maps.sources.build` reads. Given maps of a mixture come with the images. With `looks`
    (`map_classes`) what is told of patches goes with the maps.
    """

    def __init__(
        self,
        spec: ModelSpec,
        vocabulary: Vocabulary,
        prompts: tuple[Folder, str] | Sequence[str],
        box_threshold: float | None,
        num_sinkhorn: int,
        scales: tuple[float, ...],
        num_attention_blocks: int,
        stage: str,
        num_threads: int,
        box_on: Literal["map", "result"] = "map",
        affinity_map: Literal["normalised", "raw"] = "normalised",
        source: Mapping[str, Any] = {"kind": "gradcam"},
        flip: bool = False,
        max_side_px: int | None = None,
        looks: Looks | None = None,
    ) -> None:
        from fmwsss.core.class_maps.sources import build

        use_threads(num_threads)
        self.clip = load_clip(spec)
        self.vocabulary = vocabulary
        self.foreground, self.background = self._texts(prompts)
        self.scales = scales
        self.settings = (box_threshold, num_sinkhorn, scales, num_attention_blocks, build(source), flip)
        self.has_affinity = num_attention_blocks > 0
        self.options: dict[str, Any] = {"box_on": box_on, "affinity_map": affinity_map, "max_side_px": max_side_px}
        self.options["looks"] = looks
        self.payload, self.to_row = (MAPS_PAYLOAD, maps_row) if looks is None else (LOOKS_PAYLOAD, looks_row)
        # For each patch grid: two panoramas that are too many do not make photographs go one by one.
        self.fitting: dict[tuple[int, int], FittingBatch] = {}
        self.stage = stage

    def _texts(self, prompts: tuple[Folder, str] | Sequence[str]) -> tuple[Tensor, Tensor]:
        import torch

        from fmwsss.core.prompts.learner import PromptLearner, handmade_embeddings

        if not isinstance(prompts[0], Folder):
            return handmade_embeddings(self.clip, self.vocabulary, cast("Sequence[str]", prompts))
        folder, name = cast("tuple[Folder, str]", prompts)
        with torch.no_grad():
            return PromptLearner.from_bytes(self.clip, self.vocabulary, folder.read(name))()

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED_PAYLOAD rows in, MAPS_PAYLOAD rows out, LOOKS_PAYLOAD rows with `looks`.

        An image without classes has no maps and costs nothing.
        """
        ready: dict[str, dict[str, Any]] = {}
        for grid, rows in self._batches(block):
            # An error is that of one image: alone, below, it becomes that image's failure.
            with _told_alone():
                maps = itertools.chain.from_iterable(self.fitting[grid].run(self._map_classes, rows))
                ready.update(zip((row["image_id"] for row in rows), maps, strict=True))

        def maps_of(row: dict[str, Any]) -> dict[str, Any]:
            if not row["classes"]:
                size = {"height_px": row["height_px"], "width_px": row["width_px"], "grid_height": 0, "grid_width": 0}
                nothing = {"cam": b"", "refined_cam": b"" if self.has_affinity else None}
                return {**dict.fromkeys(field.name for field in self.payload), **size, "classes": [], **nothing}
            return ready.get(row["image_id"]) or self._map_classes([row])[0]

        return map_rows(block, maps_of, self.payload, self.stage)

    def _batches(self, block: pa.Table) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
        """Images of one patch grid, and the grid, a few at a time; of a shard always the same ones."""
        from fmwsss.core.adaptive_batch import FittingBatch
        from fmwsss.core.class_maps.clip_maps import images_at_once, patch_grid

        table = block.select(["image_id", "height_px", "width_px", "classes"])
        by_grid: dict[tuple[int, int], list[int]] = {}
        for number, row in enumerate(table.to_pylist()):
            if row["height_px"] is not None and row["classes"]:
                by_grid.setdefault(patch_grid(self.clip, row["height_px"], row["width_px"]), []).append(number)
        for grid, numbers in by_grid.items():
            most = images_at_once(self.clip, grid, self.scales, self.options["max_side_px"], IMAGES_PER_BATCH)
            self.fitting.setdefault(grid, FittingBatch(most))
            for begin in range(0, len(numbers), most):
                yield grid, block.take(numbers[begin : begin + most]).to_pylist()

    def _map_classes(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from fmwsss.core.class_maps.clip_maps import map_classes

        indices = [sorted(self.vocabulary.indices(row["classes"])) for row in rows]
        images = [pixels_of(row) for row in rows]
        given = [given_from_row(row) for row in rows]
        texts = (self.foreground, self.background)
        found = map_classes(self.clip, images, indices, *texts, *self.settings, given=given, **self.options)
        names = [[self.vocabulary.classes[index - 1] for index in own] for own in indices]
        return [self.to_row(*own) for own in zip(rows, names, found, strict=True)]
