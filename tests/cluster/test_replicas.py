"""Replicas as plain objects: batches of images, and what one bad image does to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.models import ModelSpec, load_clip
from cluster.replicas import ClipReplica
from cluster.rows import start_rows
from cluster.storage import Folder
from fmwsss_core.prompts import PromptLearner
from fmwsss_core.records import DECODED_PAYLOAD, maps_from_bytes
from fmwsss_core.toy.world import TOY, draw_scene

SPEC = ModelSpec(model="toy")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> ClipReplica:
    folder = Folder(str(tmp_path_factory.mktemp("prompts")))
    learner = PromptLearner(
        load_clip(SPEC), TOY, context="unified", name_position="end", backgrounds="named", num_context=2
    )
    folder.write("prompts.safetensors", learner.to_bytes())
    return ClipReplica(SPEC, TOY, (folder, "prompts.safetensors"), 0.4, 1, (1.0,), 8, "seeds/coarse", num_threads=1)


def decoded(name: str, image: np.ndarray, classes: list[str]) -> dict:
    size = {"height_px": image.shape[0], "width_px": image.shape[1]}
    return {"image_id": name, **size, "classes": classes, "pixels": image.tobytes()}


def test_a_bad_image_fails_alone_and_the_order_stays(replica: ClipReplica):
    wide, high = draw_scene(1).image[:64, :96], draw_scene(2).image[:96, :64]
    rows = [
        decoded("a", wide, ["fish"]),
        decoded("b", high, ["car", "fish"]),
        decoded("c", wide, ["no such class"]),
        decoded("d", wide, ["car"]),
    ]
    rows[2] |= {"classes": ["no such class"]}
    found = replica(start_rows("part-00000.parquet", rows, DECODED_PAYLOAD)).to_pylist()
    assert [row["image_id"] for row in found] == ["a", "b", "c", "d"]
    assert [row["failure"] is None for row in found] == [True, True, False, True]
    assert "no such class" in found[2]["failure"]["message"]
    # As if each were alone.
    for row, own in zip(rows, found, strict=True):
        (alone,) = replica(start_rows("part-00000.parquet", [row], DECODED_PAYLOAD)).to_pylist()
        if own["failure"] is None:
            shape = (len(own["classes"]), own["grid_height"], own["grid_width"])
            maps, single = (maps_from_bytes(r["refined_cam"], *shape) for r in (own, alone))
            np.testing.assert_allclose(maps, single, atol=2e-3)
    torch.set_num_threads(1)
