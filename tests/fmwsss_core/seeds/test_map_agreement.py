"""How well maps follow superpixels, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fmwsss.core.seeds.map_agreement import explained_share, finest_regions
from fmwsss.core.superpixels.masks import Superpixels


def test_the_smallest_superpixel_is_a_pixels_region() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1:2, 1:3] = True
    masks[1, :, :4] = True
    masks[2, 0:3, 0:3] = True
    superpixels = Superpixels.from_masks(masks, np.array([0, 2, 1], np.int8), *np.ones((2, 3), np.float32))
    regions = finest_regions(superpixels)
    expected = np.zeros((4, 6), int)
    expected[:, :4], expected[0:3, 0:3], expected[1:2, 1:3] = 1, 2, 3
    assert np.array_equal(regions, expected)


def test_share_is_one_on_the_regions_none_inside_them_and_blind_to_scale() -> None:
    regions = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.int32)
    follows = np.where(regions == 1, 0.7, 0.2)
    crosses = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    assert explained_share(follows, regions) == pytest.approx(1)
    assert explained_share(crosses, regions) == pytest.approx(0)
    mixed = follows + 0.1 * crosses
    by_hand = 0.25**2 / mixed.var()
    assert explained_share(mixed, regions) == pytest.approx(by_hand)
    assert explained_share(9 * mixed - 4, regions) == pytest.approx(by_hand)
    assert explained_share(np.full((2, 4), 0.3), regions) == 0
