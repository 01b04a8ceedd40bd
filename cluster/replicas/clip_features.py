"""The actor class that caches CLIP features of fixed views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows
from fmwsss.cluster.models.device import use_threads, uses_bfloat16
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.core.schemas import features_to_bytes, views_payload

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor


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
        from fmwsss.core.adaptive_batch import FittingBatch

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

        from fmwsss.core.clip.last_block import map_product

        with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=self.half):
            tokens = self.clip.encode_image(self.clip.preprocess(views)).last_block_input.float()
        if self.kind == "input":
            return [tokens]
        found = map_product(self.clip.last_block(tokens))
        return [found.embedding[:, None], found.product]
