"""`fmwsss tune`: candidates in the order of their agreement, on images and superpixels of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.schemas import IMAGES, SUPERPIXELS, superpixels_row
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.toy.world import draw_scene
from fmwsss.jobs.commands import tune
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage
from tests.support.fault_injection import DEMO
from tests.support.image_files import png

PART = "part-00000.parquet"


def test_every_candidate_has_its_agreement_and_the_first_is_told_as_settings(tmp_path: Path) -> None:
    config = load_config(DEMO, [f"run={tmp_path}", "learn=none"])
    with pytest.raises(StageError, match="has no images yet: `fmwsss run RUN_FILE --only images"):
        tune.run(config, 2)
    images, superpixels = [], []
    for number in range(3):
        scene = draw_scene(number)
        whole = scene.levels[2]
        masks = np.stack([whole == own for own in np.unique(whole)])
        sure = np.ones(len(masks), np.float32)
        found = Superpixels.from_masks(masks, np.full(len(masks), 2, np.int8), sure, sure)
        name = f"toy-{number}"
        size = {"height_px": whole.shape[0], "width_px": whole.shape[1]}
        row = {"image_id": name, "image": png(scene.image), **size, "classes": list(scene.classes)}
        images.append({**row, "sha256": "", "truth": None})
        superpixels.append(superpixels_row(name, found))
    run = Run(Folder(str(tmp_path)))
    for stage, rows, schema in (("images", images, IMAGES), ("superpixels", superpixels, SUPERPIXELS)):
        started = begin_stage(run, stage, {}, [])
        run.accept(stage, PART, run.write_part(stage, PART, rows, schema, []))
        finish_stage(run, started, [PART], len(rows), 0)

    seen: list[str] = []
    ranked = tune.measure(config, 2, lambda image_id, labels: seen.append(image_id))
    assert seen == ["toy-0", "toy-1"]
    assert {candidate for candidate, _ in ranked} == set(tune.CANDIDATES)
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    assert all(0 <= score <= 1 for score in scores)
    last = tune.run(config, 2)[-1]
    assert last == f"most agreed with: {ranked[0][0].overrides()}"
    assert load_config(DEMO, [part.strip("'") for part in ranked[0][0].overrides().split(" ", 3)]).seeds.fine.alpha > 0
