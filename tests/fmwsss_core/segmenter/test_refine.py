"""Refinement by superpixels against loops over masks and pixels, and what must hold of it whatever the masks are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.resize import upsample
from fmwsss.core.segmenter.refine import Uncovered, refine_by_crf, refine_labels
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import propose
from fmwsss.core.toy.models import toy_sam
from fmwsss.core.toy.world import TOY, Scene, draw_scene
from tests.references.sams import superpixel_scores
from tests.references.segmenter import refined_labels

HEIGHT, WIDTH, CLASSES = 6, 7, (2, 5)


def superpixels(masks: np.ndarray, level: list[int]) -> Superpixels:
    ones = np.ones(len(masks), np.float32)
    return Superpixels.from_masks(masks, np.array(level, np.int8), ones, ones)


@st.composite
def worlds(draw) -> tuple[np.ndarray, list[int], np.ndarray]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_masks = draw(st.integers(0, 5))
    masks = generator.random((num_masks, HEIGHT, WIDTH)) < generator.uniform(0.2, 0.7)
    scores = generator.random((1 + len(CLASSES), HEIGHT, WIDTH)) ** 2
    return masks, generator.integers(0, 3, num_masks).tolist(), (scores / scores.sum(0)).astype(np.float32)


@given(worlds(), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(["segmenter", "background"]))
@settings(max_examples=60, deadline=None)
def test_agrees_with_loops(world: tuple[np.ndarray, list[int], np.ndarray], alpha: float, uncovered: Uncovered):
    masks, level, maps = world
    said = np.array([0, *CLASSES], np.uint8)[maps.argmax(0)]
    refined = refine_labels(superpixels(masks, level), maps, CLASSES, said, alpha, uncovered=uncovered)
    expected = refined_labels(masks, level, maps, CLASSES, said, alpha, uncovered=uncovered)
    np.testing.assert_array_equal(refined.labels, expected)
    assert refined.coverage == pytest.approx(masks.any(0).mean() if len(masks) else 0.0)
    assert refined.confidence.min() >= 0
    assert refined.confidence.max() <= 1


# Not 1: a mask that is the best for both maps is then either, as rounding has it.
@given(worlds(), st.sampled_from([0.0, 0.3, 0.95]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_class_maps_have_a_say_in_which_class_it_is(
    world: tuple[np.ndarray, list[int], np.ndarray], weight: float, seed: int
):
    masks, level, maps = world
    said = np.array([0, *CLASSES], np.uint8)[maps.argmax(0)]
    cams = np.random.default_rng(seed).random((len(CLASSES), 2, 3)).astype(np.float32)
    support = superpixel_scores(masks, upsample(cams, HEIGHT, WIDTH), alpha=1.0)[:, 1:]
    refined = refine_labels(superpixels(masks, level), maps, CLASSES, said, 3.0, cams, CLASSES, weight)
    expected = refined_labels(masks, level, maps, CLASSES, said, 3.0, support, weight)
    np.testing.assert_array_equal(refined.labels, expected)
    if weight == 0:
        plain = refine_labels(superpixels(masks, level), maps, CLASSES, said, 3.0)
        np.testing.assert_array_equal(refined.labels, plain.labels)
    # Whether it is any class is left to the segmenter: the sum of the classes is what it was.
    sums = refine_labels(superpixels(masks, level), maps, CLASSES, said, 3.0).scores[:, 1:].sum(1)
    np.testing.assert_allclose(refined.scores[:, 1:].sum(1), sums, rtol=1e-5, atol=1e-6)


def test_a_small_thing_with_the_name_of_its_neighbour_gets_its_own():
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, :, :4], masks[1, :, 5:] = True, True
    said = np.where(masks[0] | masks[1], 2, 0).astype(np.uint8)
    said[0, 5] = 5
    maps = np.stack([said == 0, 0.6 * (said > 0), 0.4 * (said > 0)]).astype(np.float32)
    cams = np.array([[[1.0, 0.2]], [[0.1, 1.0]]], np.float32)
    plain = refine_labels(superpixels(masks, [2, 2]), maps, CLASSES, said, 3.0)
    assert plain.missing == (5,)
    found = refine_labels(superpixels(masks, [2, 2]), maps, CLASSES, said, 3.0, cams, CLASSES, 0.5)
    np.testing.assert_array_equal(found.labels, np.where(masks[0], 2, np.where(masks[1], 5, 0)))
    # One class alone: there is nothing to share out.
    alone = refine_labels(superpixels(masks, [2, 2]), maps, CLASSES, said, 3.0, cams[:1], (2,), 0.5)
    np.testing.assert_array_equal(alone.labels, plain.labels)


def test_a_class_without_a_map_keeps_its_probability():
    mask = np.ones((1, HEIGHT, WIDTH), bool)
    maps = np.stack([np.full((HEIGHT, WIDTH), share, np.float32) for share in (0.2, 0.15, 0.05, 0.6)])
    said = np.full((HEIGHT, WIDTH), 7, np.uint8)
    cams = np.array([[[1.0, 0.9]], [[0.1, 0.2]]], np.float32)
    refined = refine_labels(superpixels(mask, [2]), maps, (2, 5, 7), said, 3.0, cams, (2, 5), 0.5)
    assert set(np.unique(refined.labels)) == {7}
    np.testing.assert_allclose(refined.scores[0, [0, 3]], [0.2**3, 0.6], rtol=1e-5)
    assert refined.scores[0, 1:3].sum() == pytest.approx(0.2, rel=1e-5)


def test_a_wrong_outline_is_put_right_by_the_mask():
    mask = np.zeros((1, HEIGHT, WIDTH), bool)
    mask[0, 1:5, 1:5] = True
    said = np.zeros((HEIGHT, WIDTH), np.uint8)
    said[1:5, 1:4] = 2  # a column short of the object
    maps = np.stack([said == 0, said == 2, said == 5]).astype(np.float32)
    refined = refine_labels(superpixels(mask, [2]), maps, CLASSES, said, alpha=3.0)
    np.testing.assert_array_equal(refined.labels, np.where(mask[0], 2, 0))


@pytest.fixture(scope="module")
def scenes_with_superpixels() -> list[tuple[Scene, Superpixels]]:
    proposals = ProposalSettings(
        points_per_side=8, predicted_iou_threshold=0.4, stability_threshold=0.5, min_region_area_px=10
    )
    sam, scenes = toy_sam(), [draw_scene(seed) for seed in range(8)]
    return [(scene, propose(sam, scene.image, proposals)) for scene in scenes]


@pytest.mark.parametrize("alpha", [0.75, 1.0, 3.0])
def test_coarse_predictions_of_scenes_get_better(
    scenes_with_superpixels: list[tuple[Scene, Superpixels]], alpha: float
):
    # The truth at a sixteenth of its size, unsure: right things with wrong outlines, and real superpixels.
    num_classes = 1 + len(TOY.classes)
    said, refined = (np.zeros((num_classes, num_classes + 1), np.int64) for _ in range(2))
    for scene, masks in scenes_with_superpixels:
        height, width = scene.truth.shape
        classes = [index for index in np.unique(scene.truth).tolist() if index]
        maps = torch.from_numpy(np.stack([scene.truth == index for index in [0, *classes]])).float()
        coarse = (functional.adaptive_avg_pool2d(maps, (height // 16, width // 16)) * 0.8 + 0.2 / len(maps)).numpy()
        labels = np.array([0, *classes], np.uint8)[upsample(coarse, height, width).argmax(0)]
        better = refine_labels(masks, coarse, classes, labels, alpha)
        said += confusion_matrix(labels, scene.truth, num_classes)
        refined += confusion_matrix(better.labels, scene.truth, num_classes)
    assert mean_iou(refined) > mean_iou(said) + 0.05


def test_outside_of_all_superpixels_the_segmenter_is_believed():
    said = np.full((HEIGHT, WIDTH), 5, np.uint8)
    maps = np.stack([said == 0, said == 2, said == 5]).astype(np.float32)
    nothing = superpixels(np.zeros((0, HEIGHT, WIDTH), bool), [])
    np.testing.assert_array_equal(refine_labels(nothing, maps, CLASSES, said, alpha=3.0).labels, said)


def test_a_crf_moves_the_outline_to_where_the_colour_changes():
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 12:] = 200
    maps = np.zeros((2, 24, 24), np.float32)
    maps[1, :, 10:], maps[0, :, :10] = 0.8, 0.8  # two columns too far to the left
    maps[0, :, 10:], maps[1, :, :10] = 0.2, 0.2
    labels, confidence = refine_by_crf(image, maps, (5,))
    np.testing.assert_array_equal(labels, np.where(np.arange(24) >= 12, 5, 0)[None].repeat(24, 0))
    assert 0.5 <= confidence.min() <= confidence.max() <= 1


def test_mistakes_are_named():
    nothing = superpixels(np.zeros((0, HEIGHT, WIDTH), bool), [])
    said, maps = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((3, HEIGHT, WIDTH), np.float32)
    with pytest.raises(ValueError, match="alpha must be larger than 0"):
        refine_labels(nothing, maps, CLASSES, said, alpha=0.0)
    with pytest.raises(ValueError, match="3 maps for the background and 1 classes"):
        refine_labels(nothing, maps, (2,), said, alpha=3.0)
    cams = np.zeros((1, 2, 2), np.float32)
    for own, mapped in ((cams, CLASSES), (None, (2,)), (cams, (7,))):
        with pytest.raises(ValueError, match="class activation maps for"):
            refine_labels(nothing, maps, CLASSES, said, 3.0, own, mapped, 0.5)
