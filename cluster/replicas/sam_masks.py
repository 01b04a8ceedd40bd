"""The actor class that holds a SAM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows
from fmwsss.cluster.models.device import use_threads
from fmwsss.cluster.models.loaders import load_sam
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.models.weights import keep_compiled_code
from fmwsss.cluster.replicas.pixels import pixels_of
from fmwsss.core.schemas import DETECTIONS_PAYLOAD, detections_row

if TYPE_CHECKING:
    from fmwsss.core.superpixels.proposal_settings import ProposalSettings


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
        from fmwsss.core.superpixels.sam import detect

        return detections_row(detect(self.sam, pixels_of(row), self.settings))
