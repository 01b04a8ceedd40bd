"""Seeds by every method that a run file can choose: the functions of the core, through the stage's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmwsss.cluster.execution.rows import start_rows
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import decode_label_png
from fmwsss.core.schemas import IMAGES, MAPS_PAYLOAD, SUPERPIXELS, maps_to_bytes, superpixels_row
from fmwsss.core.seeds.baselines import crf_seed, threshold_seed, voting_seed
from fmwsss.core.seeds.sams import seed_image
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.toy.world import TOY, draw_scene
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.seeds.seed import write_shard
from tests.support.image_files import png

PART = "part-00000.parquet"
ALPHA = 0.8


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, Superpixels, np.ndarray, list[str]]:
    """A picture, the whole objects of it as superpixels, soft maps of its classes, and their names."""
    scene = next(scene for scene in map(draw_scene, range(100)) if len(scene.classes) == 2)
    whole = scene.levels[2]
    masks = np.stack([whole == number for number in np.unique(whole)])
    level, sure = np.full(len(masks), 2, np.int8), np.ones(len(masks), np.float32)
    superpixels = Superpixels.from_masks(masks, level, sure, sure)
    truth = [scene.truth == 1 + TOY.classes.index(name) for name in scene.classes]
    noise = np.random.default_rng(0).random((2, 16, 16))
    grids = np.stack([mask.reshape(16, 8, 16, 8).mean(axis=(1, 3)) for mask in truth])
    maps = np.clip(0.7 * grids + 0.3 * noise, 0, 1).astype(np.float16).astype(np.float32)
    return scene.image, superpixels, maps, list(scene.classes)


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("method", ["sams", "crf", "voting", "threshold"])
def test_a_method_is_the_core_function_of_its_name(
    scene: tuple[np.ndarray, Superpixels, np.ndarray, list[str]], tmp_path: Path, method: Any, ignores: bool
) -> None:
    image, superpixels, maps, classes = scene
    indices = TOY.indices(classes)
    expected = {
        "sams": lambda: seed_image(superpixels, maps, indices, ALPHA),
        "crf": lambda: crf_seed(image, superpixels, maps, indices, ALPHA),
        "voting": lambda: voting_seed(superpixels, maps, indices, ALPHA),
        "threshold": lambda: threshold_seed(superpixels, maps, indices, ALPHA),
    }[method]()
    ignore_below = float(expected.confidence.min()) + 1e-3 if ignores else 0.0
    labels = np.where(expected.confidence < ignore_below, 255, expected.labels)
    assert {*indices} <= {*np.unique(expected.labels)}
    assert (labels == 255).any() == ignores

    run = Run(Folder(str(tmp_path)))
    height_px, width_px = labels.shape
    size = {"height_px": height_px, "width_px": width_px}
    row = {"image_id": "a", "image": png(image), **size, "classes": classes, "sha256": "", "truth": None}
    run.write_part("images", PART, [row], IMAGES, [])
    run.write_part("superpixels", PART, [superpixels_row("a", superpixels)], SUPERPIXELS, [])
    grid = {"grid_height": maps.shape[1], "grid_width": maps.shape[2]}
    data = {"cam": maps_to_bytes(0 * maps), "refined_cam": maps_to_bytes(maps)}
    block = start_rows(PART, [{"image_id": "a", **size, "classes": classes, **grid, **data}], MAPS_PAYLOAD)
    section = SeedSection(method=method, maps="cam+caa", alpha=ALPHA, box_threshold=None, ignore_below=ignore_below)
    write_shard(block, run, "seeds/fine", TOY, section, png=True, confidence=False)

    assert run.failures("seeds/fine").num_rows == 0
    (written,) = run.read_part("seeds/fine", PART).to_pylist()
    assert np.array_equal(decode_label_png(written["seed"]), labels)
    assert np.array_equal(decode_label_png((tmp_path / "seeds" / "fine" / "png" / "a.png").read_bytes()), labels)
    assert written["missing"] == [name for name, index in zip(classes, indices, strict=True) if index not in labels]
