"""Replicas as plain objects: batches of images, and what one bad image does to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fmwsss.cluster.execution.rows import start_rows
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.clip_features import FeatureReplica
from fmwsss.cluster.replicas.clip_maps import ClipReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.class_maps import clip_maps as localise
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.schemas import DECODED_PAYLOAD, features_from_bytes, maps_from_bytes, views_payload
from fmwsss.core.toy.world import TOY, draw_scene

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


def test_images_that_are_too_many_for_the_memory_come_in_halves(replica: ClipReplica, monkeypatch: pytest.MonkeyPatch):
    rows = [decoded(f"{seed}", draw_scene(seed).image[:64, :96], ["fish"]) for seed in range(6)]
    blocks = [start_rows("part-00000.parquet", own, DECODED_PAYLOAD) for own in (rows, *([row] for row in rows))]
    whole, *alone = (replica(block) for block in blocks)
    sizes, map_classes = [], localise.map_classes

    def with_little_memory(clip: Any, images: list, *others: Any, **more: Any):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return map_classes(clip, images, *others, **more)

    monkeypatch.setattr(localise, "map_classes", with_little_memory)
    replica.fitting.clear()
    assert replica(blocks[0]).equals(pa.concat_tables(alone))
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    replica(blocks[0])
    assert sizes[8:] == [1] * 6, "what fitted is kept"
    assert whole["failure"].null_count == 6


@pytest.mark.parametrize("kind", ["input", "product"])
def test_views_that_are_too_many_for_the_memory_come_in_halves(kind: str, monkeypatch: pytest.MonkeyPatch):
    replica = FeatureReplica(SPEC, kind, 4, 96, "float32", "features/classification", num_threads=1)
    views = {f"view_{i}": draw_scene(i).image[:96, :96].tobytes() for i in range(4)}
    row = {"image_id": "a", "height_px": 128, "width_px": 128, **views}
    block = start_rows("part-00000.parquet", [row], views_payload(4))
    whole, sizes, encode_image = replica(block), [], replica.clip.encode_image

    def with_little_memory(views: torch.Tensor):
        sizes.append(len(views))
        if len(views) > 2:
            raise torch.OutOfMemoryError
        return encode_image(views)

    monkeypatch.setattr(replica.clip, "encode_image", with_little_memory)
    halves = replica(block)
    assert sizes == [4, 2, 2]
    shapes = [(145, 128)] if kind == "input" else [(1, 64), (144, 64)]
    for number in range(4):
        found, expected = (
            features_from_bytes(table[f"view_{number}"][0].as_py(), *shapes) for table in (halves, whole)
        )
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, other, atol=2e-3 * np.abs(other).max())
