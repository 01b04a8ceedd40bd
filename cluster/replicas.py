"""The actor classes that hold models: blocks of decoded images in, blocks of their results out. No formulas."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.models import ModelSpec, keep_compiled_code, load_clip, load_sam
from cluster.rows import map_rows
from cluster.storage import Folder
from fmwsss_core.records import (
    DETECTIONS_PAYLOAD,
    MAPS_PAYLOAD,
    detections_row,
    features_to_bytes,
    maps_to_bytes,
    views_payload,
)

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

    from fmwsss_core.proposals import ProposalSettings
    from fmwsss_core.vocabulary import Vocabulary


# The attention of so many photographs, at scale 1, fits beside a ViT-B/16 in 8 GB.
IMAGES_PER_BATCH = 8


class SamReplica:
    """A SAM that stays in memory and turns decoded images into masks, as bits; what follows needs no GPU."""

    def __init__(self, spec: ModelSpec, settings: ProposalSettings, stage: str, num_threads: int) -> None:
        use_threads(num_threads)
        if settings.compiled:
            keep_compiled_code()
        self.sam = load_sam(spec)
        self.settings = settings
        self.stage = stage

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED_PAYLOAD rows in, DETECTIONS_PAYLOAD rows out."""
        return map_rows(block, self._detect, DETECTIONS_PAYLOAD, self.stage)

    def _detect(self, row: dict[str, Any]) -> dict[str, Any]:
        from fmwsss_core.sam import detect

        return detections_row(detect(self.sam, pixels_of(row), self.settings))


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
    ) -> None:
        import torch

        from fmwsss_core.memory import FittingBatch
        from fmwsss_core.prompts import PromptLearner

        use_threads(num_threads)
        self.clip = load_clip(spec)
        self.vocabulary = vocabulary
        folder, name = prompts
        with torch.no_grad():
            learner = PromptLearner.from_bytes(self.clip, vocabulary, folder.read(name))
            self.foreground, self.background = learner()
        self.settings = (box_threshold, num_sinkhorn, scales, num_attention_blocks)
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
            with contextlib.suppress(Exception):
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
        from fmwsss_core.localise import patch_grid

        table = block.select(["image_id", "height_px", "width_px", "classes"])
        by_grid: dict[tuple[int, int], list[int]] = {}
        for number, row in enumerate(table.to_pylist()):
            if row["height_px"] is not None and row["classes"]:
                by_grid.setdefault(patch_grid(self.clip, row["height_px"], row["width_px"]), []).append(number)
        for grid, numbers in by_grid.items():
            for begin in range(0, len(numbers), self.images_per_batch):
                yield grid, block.take(numbers[begin : begin + self.images_per_batch]).to_pylist()

    def _map_classes(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from fmwsss_core.localise import map_classes

        indices = [sorted(self.vocabulary.indices(row["classes"])) for row in rows]
        images = [pixels_of(row) for row in rows]
        found = map_classes(self.clip, images, indices, self.foreground, self.background, *self.settings)
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


class FeatureReplica:
    """A frozen CLIP that turns the fixed views of an image into what prompt learning keeps of them."""

    def __init__(
        self,
        spec: ModelSpec,
        kind: str,
        num_views: int,
        crop_px: int,
        precision: str | None,
        stage: str,
        num_threads: int,
    ) -> None:
        from fmwsss_core.memory import FittingBatch

        use_threads(num_threads)
        self.clip = load_clip(spec)
        self.kind, self.num_views, self.crop_px = kind, num_views, crop_px
        self.half = uses_bfloat16(precision, self.clip.device.type)
        self.batch = FittingBatch(num_views)
        self.stage = stage

    def __call__(self, block: pa.Table) -> pa.Table:
        """Rows of `views_payload` in, with pixels; the same out, with features."""
        return map_rows(block, self._encode, views_payload(self.num_views), self.stage)

    def _encode(self, row: dict[str, Any]) -> dict[str, Any]:
        import torch

        pixels = [np.frombuffer(row[f"view_{index}"], np.uint8) for index in range(self.num_views)]
        views = torch.from_numpy(np.stack(pixels).reshape(-1, 3, self.crop_px, self.crop_px)).to(self.clip.device)
        kept = [torch.cat(parts) for parts in zip(*self.batch.run(self._keep, views), strict=True)]
        arrays = [array.cpu().numpy() for array in kept]
        features = {
            f"view_{index}": features_to_bytes(*(array[index] for array in arrays)) for index in range(self.num_views)
        }
        return {"height_px": row["height_px"], "width_px": row["width_px"], **features}

    def _keep(self, views: UInt8[Tensor, "views 3 side side"]) -> list[Float[Tensor, "views rows dimensions"]]:
        import torch

        from fmwsss_core.last_block import map_product

        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=self.half):
            tokens = self.clip.encode_image(self.clip.preprocess(views)).last_block_input.float()
        if self.kind == "input":
            return [tokens]
        found = map_product(self.clip.last_block(tokens))
        return [found.embedding[:, None], found.product]


def uses_bfloat16(precision: str | None, device_type: str) -> bool:
    """Whether the towers compute in bfloat16: as told, or on a GPU."""
    return precision == "bfloat16" or (precision is None and device_type == "cuda")


def use_threads(num_threads: int) -> None:
    """Gives torch the threads of this actor's share of the machine; Ray sets one for every worker."""
    import torch

    torch.set_num_threads(num_threads)


def pixels_of(row: dict[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The decoded image of a row of DECODED_PAYLOAD."""
    pixels = np.frombuffer(row["pixels"], dtype=np.uint8)
    return pixels.reshape(row["height_px"], row["width_px"], 3).copy()
