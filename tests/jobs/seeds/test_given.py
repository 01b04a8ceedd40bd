"""Maps that were made elsewhere, through the operators of a stage of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fmwsss.cluster.execution.rows import start_rows
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.clip_maps import ClipReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.class_maps.maps import ClassMaps, min_max, mixed
from fmwsss.core.schemas import DECODED_PAYLOAD, IMAGES, SEEDS, maps_from_bytes, maps_to_bytes
from fmwsss.core.toy.world import TOY, draw_scene
from fmwsss.jobs.config.class_maps import GivenSource
from fmwsss.jobs.seeds.given import add_given, given_shard
from tests.support.image_files import png

PART = "part-00000.parquet"
MAPS = np.random.default_rng(0).random((2, 6, 5)).astype(np.float32)
CAR, FISH = TOY.index("car"), TOY.index("fish")


def _source(folder: Path, kind: str) -> GivenSource:
    """Maps of image `a`; its classes are `fish` and `car`, in an order that is not the vocabulary's."""
    if kind == "npy":
        np.save(folder / "a.npy", {"keys": np.array([FISH - 1, CAR - 1]), "attn_highres": MAPS}, allow_pickle=True)  # type: ignore[arg-type]
    elif kind == "npz":
        np.savez(folder / "a.npz", keys=np.array(["fish", "car"]), maps=MAPS)
    else:
        empty = dict.fromkeys(SEEDS.names)
        row = {**empty, "image_id": "a", "classes": ["fish", "car"], "grid_height": 6, "grid_width": 5}
        other = {**row, "image_id": "z"}
        for name, rows in (("part-00007.parquet", [row | {"cam": maps_to_bytes(MAPS)}]), ("part-1.parquet", [other])):
            Folder(str(folder)).write_table(name, rows, SEEDS)
    return GivenSource(kind="given", path=str(folder), format=kind, column="cam")  # type: ignore[arg-type]


def _run(folder: Path, classes: list[str]) -> Run:
    run = Run(Folder(str(folder / "run")))
    image = draw_scene(1).image
    size = {"height_px": image.shape[0], "width_px": image.shape[1]}
    rows = [
        {"image_id": name, "image": png(image), **size, "classes": own, "sha256": "", "truth": None}
        for name, own in (("a", classes), ("b", ["car"]), ("c", []))
    ]
    run.write_part("images", PART, rows, IMAGES, [])
    return run


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_given_maps_are_found_by_id_and_a_missing_one_fails_alone(tmp_path: Path, kind: str) -> None:
    source, run = _source(tmp_path, kind), _run(tmp_path, ["fish", "car"])
    block = given_shard(pa.table({"part": [PART]}), run, [source], [1.0], TOY, "seeds/fine")
    a, b, c = block.to_pylist()
    expected = min_max(maps_from_bytes(maps_to_bytes(MAPS), 2, 6, 5) if kind == "parquet" else MAPS)
    order = ["car", "fish"] if CAR < FISH else ["fish", "car"]
    assert a["classes"] == order
    found = maps_from_bytes(a["cam"], 2, a["grid_height"], a["grid_width"])
    np.testing.assert_allclose(found, expected[[("fish", "car").index(name) for name in order]], atol=5e-4)
    assert a["refined_cam"] is None
    assert b["failure"]["error_type"] == "InputError"
    assert str(tmp_path) in b["failure"]["message"]
    assert "b" in b["failure"]["message"]
    assert (c["failure"], c["classes"], c["cam"]) == (None, [], b"")


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    source, run = _source(tmp_path, "npz"), _run(tmp_path, ["fish", "train"])
    block = given_shard(pa.table({"part": [PART]}), run, [source], [1.0], TOY, "seeds/fine")
    message = block.to_pylist()[0]["failure"]["message"]
    assert "a.npz" in message
    assert "train" in message


def test_a_mixture_of_given_maps_and_patches(tmp_path: Path) -> None:
    source, image = _source(tmp_path, "npz"), draw_scene(1).image
    size = {"height_px": image.shape[0], "width_px": image.shape[1]}
    row = {"image_id": "a", **size, "classes": ["fish", "car"], "pixels": image.tobytes()}
    decoded = start_rows(PART, [row], DECODED_PAYLOAD)

    def maps_of(block: pa.Table, settings: dict[str, Any]) -> ClassMaps:
        arguments: dict[str, Any] = {"stage": "seeds/fine", "num_threads": 1, "source": settings}
        replica = ClipReplica(ModelSpec(model="toy"), TOY, ("a {}.",), None, 1, (1.0,), 0, **arguments)
        (own,) = replica(block).to_pylist()
        assert own["failure"] is None
        assert own["refined_cam"] is None
        return ClassMaps(maps_from_bytes(own["cam"], 2, own["grid_height"], own["grid_width"]), None)

    parts = [{"source": {"kind": "given"}, "weight": 3.0}, {"source": {"kind": "patch"}, "weight": 1.0}]
    found = maps_of(add_given(decoded, [source], TOY, "seeds/fine"), {"kind": "mixture", "parts": parts})
    order = [1, 0] if CAR < FISH else [0, 1]
    expected = mixed([maps_of(decoded, {"kind": "patch"}), ClassMaps(min_max(MAPS[order]), None)], [1.0, 3.0])
    np.testing.assert_allclose(found.cam, expected.cam, atol=2e-3)
