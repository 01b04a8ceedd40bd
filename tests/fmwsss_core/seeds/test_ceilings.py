"""Ceilings of masks and maps against loops, and that they are ceilings."""

from __future__ import annotations

import numpy as np
import pytest

from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.resize import upsample
from fmwsss.core.seeds.ceilings import cut_best, named_by_truth
from fmwsss.core.seeds.sams import label_map_from_cam
from fmwsss.core.superpixels.masks import Superpixels
from tests.references import ceilings as reference


def _truth(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    blocks = generator.choice(np.array([0, 0, 3, 7, 255], np.uint8), (height // 3, width // 3))
    return np.kron(blocks, np.ones((3, 3), np.uint8))


@pytest.mark.parametrize("seed", range(20))
def test_superpixels_named_by_the_truth_against_loops(seed: int):
    generator = np.random.default_rng(seed)
    truth = _truth(generator, 9, 12)
    masks = generator.random((seed % 7, 9, 12)) < generator.uniform(0.05, 0.7)
    level = generator.integers(0, 3, len(masks)).astype(np.int8)
    sure = np.ones(len(masks), np.float32)
    found = named_by_truth(Superpixels.from_masks(masks, level, sure, sure), truth)
    np.testing.assert_array_equal(found, reference.named_by_truth(masks, level, truth))


def test_masks_of_the_objects_are_no_loss():
    truth = _truth(np.random.default_rng(0), 12, 12)
    masks = np.stack([truth == value for value in np.unique(truth)])
    sure = np.ones(len(masks), np.float32)
    found = named_by_truth(Superpixels.from_masks(masks, np.zeros(len(masks), np.int8), sure, sure), truth)
    np.testing.assert_array_equal(found[truth != 255], truth[truth != 255])


@pytest.mark.parametrize("seed", range(10))
def test_maps_cut_best_against_loops(seed: int):
    generator = np.random.default_rng(seed)
    truth = _truth(generator, 9, 12)
    maps = generator.random((3, 3, 4)).astype(np.float32)
    classes = [3, 7, 9]
    found = cut_best(maps, classes, truth)
    np.testing.assert_array_equal(found, reference.cut_best(upsample(maps, 9, 12), classes, truth))
    assert 9 not in found


def test_no_cut_of_one_map_is_better():
    generator = np.random.default_rng(1)
    truth = np.where(_truth(generator, 12, 12) == 3, 3, 0).astype(np.uint8)
    maps = np.clip((truth[None, ::3, ::3] == 3) * 0.5 + 0.6 * generator.random((1, 4, 4)), 0, 1).astype(np.float32)
    best = mean_iou(confusion_matrix(cut_best(maps, [3], truth), truth, 4))
    others = [label_map_from_cam(maps, [3], 12, 12, power) for power in (0.25, 0.5, 1.0, 2.0, 4.0)]
    # The IoU of the class, not of the background, is what is highest: of two classes the mean may differ a little.
    assert best >= max(mean_iou(confusion_matrix(labels, truth, 4)) for labels in others) - 0.02
    assert best > 0.5
