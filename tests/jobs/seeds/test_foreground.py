"""A run whose foreground is learned on the dataset, by command, against the same done image by image in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import FOREGROUND_FILE, Run
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.schemas import features_of, maps_from_bytes, superpixels_from_row
from fmwsss.core.seeds.foreground import fit_folds, fold_of, foreground_margins
from fmwsss.core.seeds.sams import seed_image
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.seeds.foreground import fit
from fmwsss.jobs.stages import StageError
from fmwsss.jobs.steps import stages_of
from tests.support.fault_injection import DEMO, ROOT, ThreeNodes, outputs, start_run

ALPHA = 0.4
SETTINGS = [
    "dataset.num_images=12", "shard_rows=4", "propose.points_per_side=6", "preview.num_images=2", "learn=none",
    "seeds.coarse.source=patch", "seeds.fine.source=patch", "seeds.fine.foreground=tokens", "seeds.fine.scales=[1.0]",
    f"seeds.fine.alpha={ALPHA}",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("foreground") / "run"
    command = [sys.executable, "-m", "fmwsss.jobs", "run", DEMO, f"run={folder}", *SETTINGS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return Run(Folder(str(folder)))


@pytest.fixture(scope="module")
def on_one_node(run: Run) -> dict[str, bytes]:
    """What the run has before anything is changed in it."""
    return outputs(run.folder.url)


def rows(run: Run, stage: str) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for part in run.parts(stage) for row in run.read_part(stage, part).to_pylist()}


def test_seeds_are_those_of_the_method_done_in_one_process(run: Run) -> None:
    clip = FrozenClip(toy_clip(), "toy")
    images, superpixels = rows(run, "images"), rows(run, "superpixels")
    maps, seeds = rows(run, "maps/fine"), rows(run, "seeds/fine")
    names, features, margins = sorted(seeds), {}, {}
    assert names == sorted(images)
    own, cams, indices = {}, {}, {}
    for name in names:
        own[name], indices[name] = superpixels_from_row(superpixels[name]), TOY.indices(maps[name]["classes"])
        grid = (maps[name]["grid_height"], maps[name]["grid_width"])
        cams[name] = maps_from_bytes(maps[name]["cam"], len(indices[name]), *grid)
        margins[name] = foreground_margins(seed_image(own[name], cams[name], indices[name], ALPHA).scores)
        np.testing.assert_allclose(maps[name]["margins"], margins[name], atol=1e-7)
        pixels = torch.from_numpy(decode_rgb(images[name]["image"], UNLIMITED)).permute(2, 0, 1)[None]
        encoded = clip.encode_image(clip.preprocess(pixels))
        tokens = encoded.last_block_input[0, 1:].reshape(*encoded.grid, -1)
        # Sizes of the toy world are whole patches: the mean over pixels is the mean over shares.
        every = tokens.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        expected = np.stack([every[own[name].mask(number)].mean(axis=0) for number in range(len(own[name]))])
        features[name] = features_of(maps[name]["features"], len(own[name]))
        np.testing.assert_allclose(features[name], expected, atol=2e-3 * np.abs(expected).max())

    folds = np.repeat(fold_of(names), [len(own[name]) for name in names])
    models = fit_folds(
        np.concatenate([features[name] for name in names]),
        np.concatenate([margins[name] for name in names]).astype(np.float32),
        folds,
    )
    assert all(models.is_fitted)
    assert all(np.abs(model.weight).max() > 0 for model in models.models)
    for name in names:
        decision = models.decide(name, features[name], margins[name].astype(np.float32))
        expected_seed = seed_image(own[name], cams[name], indices[name], ALPHA, foreground=decision)
        np.testing.assert_array_equal(decode_label_png(seeds[name]["seed"]), expected_seed.labels)
        np.testing.assert_array_equal(seeds[name]["scores"], expected_seed.scores.reshape(-1))


@pytest.mark.long
def test_three_nodes_write_the_same_bytes(on_one_node: dict[str, bytes], tmp_path: Path) -> None:
    nodes, log = ThreeNodes(), tmp_path / "log"
    try:
        assert start_run(str(tmp_path / "three"), nodes.address, log, SETTINGS).wait(500) == 0, log.read_text()
    finally:
        nodes.shutdown()
    assert outputs(str(tmp_path / "three")) == on_one_node
    assert any(name.endswith(FOREGROUND_FILE) for name in on_one_node)


@pytest.mark.usefixtures("on_one_node")  # before anything is changed
def test_only_painting_is_done_again_where_only_painting_changed(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(run.folder.url).rglob("maps/fine/part-*")}
    assert len(before) == 3
    command = [sys.executable, "-m", "fmwsss.jobs", "run", DEMO, f"run={run.folder.url}", *SETTINGS]
    more = ["seeds.fine.uncovered=map", "--from", "seeds/fine"]
    result = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "maps/fine: complete" in result.stdout


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no image has superpixels and classes"):
        fit(Run(Folder(str(tmp_path))), "maps/fine", (), "foreground/fine")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds.fine.method=crf", "`foreground` needs `method: sams`"),
        ("seeds.fine.source={kind: given, path: x, format: npy}", "`foreground` needs CLIP"),
    ],
)
def test_what_can_not_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(DEMO, ["seeds.fine.foreground=both", "seeds.fine.maps=cam", setting])
    with pytest.raises(ValueError, match="joint_every"):
        load_config(DEMO, ["seeds.coarse.foreground=both", "learn.joint_every=5"])


def test_stages_are_there_where_they_are_asked_for() -> None:
    def names(*more: str) -> list[str]:
        return [stage.name for stage in stages_of(load_config(DEMO, list(more)))]

    assert not [name for name in names() if name.startswith(("maps/", "foreground/"))]
    asked = names("seeds.fine.foreground=both")
    at = [asked.index(name) for name in ("prompts/segmentation", "maps/fine", "foreground/fine", "seeds/fine")]
    assert at == sorted(at)
    assert "maps/coarse" not in asked
