"""The actors that hold models, without Ray: what they do when their memory is too small."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch

from cluster.models import ModelSpec
from cluster.replicas import SamReplica
from cluster.rows import start_rows
from fmwsss_core.records import DECODED_PAYLOAD
from fmwsss_core.sam import ProposalSettings
from fmwsss_core.toy.world import draw_scene

SETTINGS = ProposalSettings(
    points_per_side=4, points_per_batch=16, predicted_iou_threshold=0.3, stability_threshold=0.3, min_region_area_px=10
)


def block_of(*seeds: int) -> pa.Table:
    rows = []
    for seed in seeds:
        image = draw_scene(seed).image
        size = {"height_px": image.shape[0], "width_px": image.shape[1]}
        rows.append({"image_id": f"toy-{seed}", "classes": [], "pixels": image.tobytes(), **size})
    return start_rows("part-00000.parquet", rows, DECODED_PAYLOAD)


@pytest.fixture
def replica() -> Iterator[SamReplica]:
    before = torch.get_num_threads()
    yield SamReplica(ModelSpec(model="toy"), SETTINGS, "superpixels", num_threads=1)
    torch.set_num_threads(before)


def test_an_image_that_does_not_fit_is_a_failure_and_the_next_one_is_tried(replica: SamReplica) -> None:
    real, asked = replica.sam.image_encoder.forward, []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        asked.append(pixels)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(pixels)

    replica.sam.image_encoder.forward = forward
    first, second = replica(block_of(1, 2))["failure"].to_pylist()
    assert first["error_type"] == "OutOfMemoryError"
    assert second is None
