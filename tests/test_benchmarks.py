"""Programs that nobody runs for a while stop running: their cores, on inputs that take seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks import methods, proposals, seeding
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import propose
from fmwsss.core.toy.models import toy_sam
from fmwsss.core.toy.world import draw_scene

SETTINGS = ProposalSettings(
    points_per_side=6, predicted_iou_threshold=0.4, stability_threshold=0.5, min_region_area_px=10, crop_layers=1
)


def test_rows_without_a_change_are_what_propose_gives_without_it():
    image, sam = draw_scene(11).image, toy_sam()
    for name, found in methods.superpixels_of(sam, image, SETTINGS).items():
        expected = propose(sam, image, replace(SETTINGS, **methods.CHANGES[name]))
        assert found.rle == expected.rle, name
        np.testing.assert_array_equal(found.level, expected.level)


def test_the_generator_comparison_runs_and_finds_equal_masks():
    settings = replace(SETTINGS, **proposals.CHANGES_OFF)
    result = proposals.measure(toy_sam(), [draw_scene(12).image], settings, batch_effect=False)
    assert result["masks_equal"]
    assert result["masks"] > 0
    assert all(result["seconds"][side]["whole"] > 0 for side in ("ours", "original"))


def test_the_seeding_comparison_runs_and_finds_equal_seeds():
    row = seeding.measure(10, 2, 60, 80, repeats=1)
    assert row["equal"]
    assert row["vs_dense"] > 0
