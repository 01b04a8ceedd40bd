"""What the driver tells the training workers of a segmenter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fmwsss.cluster.models.segmenters import SegmenterSpec
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.config.segmenter import SegmenterSection
from fmwsss.jobs.segmenter.crops import CropSource


@dataclass(frozen=True)
class TrainJob:
    """Everything a worker needs; travels to it as it is."""

    run: Run
    stage: str
    spec: SegmenterSpec
    source: CropSource
    section: SegmenterSection
    num_iterations: int
    num_feeders: int
    random_seed: int
    num_threads: int
    checkpoint_every_s: float
    validation: Run | None
    precision: Literal["float32", "bfloat16"]
