"""The actors that hold models, without Ray: what they do when their memory is too small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def small_memory(replica: SamReplica, num_points: int) -> list[int]:
    """Lets the decoder take this many points at once; more are PyTorch's own error. Returns what it was asked for."""
    real, asked = replica.sam.mask_decoder.forward, []

    def forward(**arguments: Any) -> Any:
        count = arguments["sparse_prompt_embeddings"].shape[0]
        asked.append(count)
        if count > num_points:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(**arguments)

    replica.sam.mask_decoder.forward = forward
    return asked


@pytest.fixture
def replica() -> Iterator[SamReplica]:
    before = torch.get_num_threads()
    yield SamReplica(ModelSpec(model="toy"), SETTINGS, "superpixels", num_threads=1)
    torch.set_num_threads(before)


def test_batches_are_halved_until_they_fit_and_the_masks_stay_the_same(replica: SamReplica) -> None:
    expected = replica(block_of(1, 2))
    assert expected["failure"].null_count == 2
    asked = small_memory(replica, 5)
    assert replica(block_of(1, 2)).equals(expected)
    assert asked[:3] == [16, 8, 4]
    assert set(asked[3:]) == {4}, "a batch that did not fit was tried again"
    assert replica.settings.points_per_batch == 4


def test_an_image_that_fits_in_no_batch_is_a_failure(replica: SamReplica) -> None:
    small_memory(replica, 0)
    (failure,) = replica(block_of(1))["failure"].to_pylist()
    assert failure["error_type"] == "OutOfMemoryError"
    assert replica.settings.points_per_batch == 1
