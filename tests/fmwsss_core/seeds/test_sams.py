"""Seeds against the equations, one pixel at a time, and the cases where the equations say nothing useful."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fmwsss.core.resize import upsample
from fmwsss.core.seeds.sams import (
    cam_probabilities,
    label_map_from_cam,
    label_maps_from_cam,
    margin,
    margins_of_cams,
    seed_image,
)
from fmwsss.core.superpixels.masks import Superpixels
from tests.references import sams as reference

CLASSES = [3, 15, 7]


def superpixels_of(masks: np.ndarray, level) -> Superpixels:
    zeros = np.zeros(len(masks), dtype=np.float32)
    return Superpixels.from_masks(masks, np.asarray(level, dtype=np.int8), zeros, zeros)


@st.composite
def images(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks without empty ones, levels, CAMs of 0 to 3 classes; coarse values, so that ties occur."""
    height, width = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    masks = draw(hnp.arrays(bool, (draw(st.integers(0, 6)), height, width)))
    masks = masks[masks.any(axis=(1, 2))]
    level = draw(hnp.arrays(np.int8, len(masks), elements=st.integers(0, 2)))
    grid = (draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0, -0.5])
    return masks, level, draw(hnp.arrays(np.float32, grid, elements=values))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (14, 9)])
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (14, 9), (67, 130)])
def test_upsampling_is_torchs(grid: tuple[int, int], size: tuple[int, int]):
    maps = np.random.default_rng(0).random((2, *grid), dtype=np.float32)
    expected = torch.nn.functional.interpolate(torch.as_tensor(maps)[None], size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upsample(maps, *size), expected[0].numpy(), atol=2e-6)


@settings(max_examples=200)
@given(images(), st.sampled_from([0.3, 0.6, 1.0, 3.0]))
def test_seed_is_the_naive_one(image: tuple[np.ndarray, np.ndarray, np.ndarray], alpha: float):
    masks, level, cams = image
    classes = CLASSES[: len(cams)]
    seed = seed_image(superpixels_of(masks, level), cams, classes, alpha)
    height, width = masks.shape[1:]

    maps = upsample(cams, height, width)
    np.testing.assert_allclose(seed.scores, reference.superpixel_scores(masks, maps, alpha), atol=2e-5)
    np.testing.assert_array_equal(seed.superpixel_class, np.array([0, *classes])[seed.scores.argmax(axis=1)])
    if len(masks) > 0:
        np.testing.assert_array_equal(seed.labels, reference.labels(masks, level, seed.scores, classes))
    assert set(np.unique(seed.labels)) <= {0, *classes}
    assert set(seed.missing) == set(classes) - set(np.unique(seed.labels).tolist())
    assert seed.coverage == pytest.approx(masks.any(axis=0).mean() if len(masks) else 0)
    assert seed.confidence.min() >= 0
    assert seed.confidence.max() <= 1
    if len(masks) > 0:
        assert not seed.labels[~masks.any(axis=0)].any()


@given(images(), st.sampled_from([0.3, 1.0]))
def test_uncovered_pixels_follow_the_map_and_no_other_pixel_changes(image, alpha: float):
    masks, level, cams = image
    classes = CLASSES[: len(cams)]
    superpixels = superpixels_of(masks, level)
    plain = seed_image(superpixels, cams, classes, alpha)
    seed = seed_image(superpixels, cams, classes, alpha, uncovered="map")
    inside = masks.any(axis=0)
    np.testing.assert_array_equal(seed.labels[inside], plain.labels[inside])
    np.testing.assert_array_equal(seed.confidence[inside], plain.confidence[inside])
    scaled = reference.scaled_to_image(upsample(cams, *inside.shape))
    for row, column in np.argwhere(~inside):
        position, values = (row, column), scaled[:, row, column]
        own = [(1 - max(values, default=0)) ** alpha, *values]
        best, second = sorted(own, reverse=True)[:2] if len(own) > 1 else (own[0], 0.0)
        assert seed.confidence[position] == pytest.approx(best - second, abs=1e-5)
        if best - second > 1e-5:
            assert seed.labels[position] == [0, *classes][own.index(best)]


@given(images(), st.data())
def test_order_of_superpixels_matters_in_ties_only(image: tuple[np.ndarray, np.ndarray, np.ndarray], data):
    masks, level, cams = image
    order = np.array(data.draw(st.permutations(range(len(masks)))), dtype=int)
    classes = CLASSES[: len(cams)]
    seed = seed_image(superpixels_of(masks, level), cams, classes, 0.6)
    shuffled = seed_image(superpixels_of(masks[order], level[order]), cams, classes, 0.6)
    np.testing.assert_array_equal(shuffled.scores, seed.scores[order])
    ranks = list(zip(level.tolist(), seed.scores.max(axis=1).tolist(), strict=True))
    # Ties: pixels whose best (level, score) is shared by two superpixels.
    tied = np.zeros(seed.labels.shape, dtype=bool)
    for position in np.ndindex(*tied.shape):
        over = [ranks[row] for row in range(len(masks)) if masks[row][position]]
        tied[position] = len(over) > 0 and over.count(max(over)) > 1
    np.testing.assert_array_equal(shuffled.labels[~tied], seed.labels[~tied])


@given(images(), st.permutations([0, 1, 2]))
def test_scale_of_the_maps_does_not_matter(image: tuple[np.ndarray, np.ndarray, np.ndarray], exponents: list[int]):
    masks, level, cams = image
    superpixels, classes = superpixels_of(masks, level), CLASSES[: len(cams)]
    # Powers of two change no digit.
    scaled = cams * (2.0 ** (8 * np.array(exponents[: len(cams)]) - 20)).astype(np.float32)[:, None, None]
    np.testing.assert_array_equal(
        seed_image(superpixels, scaled, classes, 0.6).labels, seed_image(superpixels, cams, classes, 0.6).labels
    )


def halves() -> np.ndarray:
    masks = np.zeros((2, 4, 8), dtype=bool)
    masks[0, :, :4] = True
    masks[1, :, 4:] = True
    return masks


def test_a_higher_level_wins_and_a_whole_background_erases():
    left, right = halves()
    masks = np.stack([left | right, left, right & (np.arange(4) < 2)[:, None]])
    cams = np.array([[[1.0, 0.0]]], dtype=np.float32)
    # The small mask on the right is background and of a higher level than the left half; the full mask lies below.
    seed = seed_image(superpixels_of(masks, [0, 1, 2]), cams, [5], 0.6)
    np.testing.assert_array_equal(seed.superpixel_class[1:], [5, 0])
    assert (seed.labels[:, :4] == 5).all()
    assert not seed.labels[:2, 4:].any()


def test_equal_level_and_score_first_superpixel_wins():
    masks = np.ones((2, 2, 2), dtype=bool)
    # Both classes see the same, both masks are the same: background and class order decide, then mask order.
    seed = seed_image(superpixels_of(masks, [1, 1]), np.array([[[0.0, 1.0]]] * 2, dtype=np.float32), [9, 4], 3.0)
    assert set(np.unique(seed.labels)) == {9}


def test_one_superpixel_is_not_lost_to_min_max():
    masks = halves()[:1]
    cams = np.array([[[1.0, 1.0, 0.0, 0.0]]], dtype=np.float32)
    seed = seed_image(superpixels_of(masks, [2]), cams, [12], 0.6)
    # The mean of the map inside the mask, not 0.
    assert seed.scores[0, 1] == pytest.approx(0.97, abs=0.05)
    assert (seed.labels == 12 * masks[0]).all()
    assert seed.missing == ()


def test_equal_means_fall_back_for_that_class_alone():
    masks = halves()
    symmetric, left = [[0.0, 1.0, 1.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]
    seed = seed_image(superpixels_of(masks, [2, 2]), np.array([symmetric, left], dtype=np.float32), [1, 2], 1.0)
    np.testing.assert_allclose(seed.scores[:, 1], 0.5, atol=1e-6)
    np.testing.assert_allclose(seed.scores[:, 2], [1, 0], atol=1e-6)
    assert seed.superpixel_class[0] == 2


def test_without_superpixels_the_maps_decide():
    cams = np.array([[[1.0, 1.0, 0.0, 0.0]]], dtype=np.float32)
    seed = seed_image(superpixels_of(np.zeros((0, 4, 8), dtype=bool), []), cams, [12], 0.6)
    np.testing.assert_array_equal(seed.labels, label_map_from_cam(cams, [12], 4, 8, 0.6))
    assert set(np.unique(seed.labels)) == {0, 12}
    assert seed.coverage == 0
    assert seed.superpixel_class.shape == (0,)
    assert seed.scores.shape == (0, 2)


def test_without_classes_all_is_background():
    seed = seed_image(superpixels_of(halves(), [2, 1]), np.zeros((0, 1, 2), np.float32), [], 0.6)
    assert not seed.labels.any()
    np.testing.assert_array_equal(seed.scores, [[1], [1]])
    np.testing.assert_array_equal(seed.confidence, 1)
    assert seed.coverage == 1
    nothing = seed_image(superpixels_of(np.zeros((0, 4, 8), bool), []), np.zeros((0, 1, 2), np.float32), [], 0.6)
    assert not nothing.labels.any()


@pytest.mark.parametrize("value", [0.0, -1.0, 0.7])
def test_a_map_without_contrast_never_wins(value: float):
    cams = np.stack([np.full((1, 4), value), [[1.0, 1.0, 0.0, 0.0]]]).astype(np.float32)
    seed = seed_image(superpixels_of(halves(), [2, 2]), cams, [1, 2], 0.6)
    assert set(np.unique(seed.labels)) == {0, 2}
    assert seed.missing == (1,)


def test_confidence_is_the_margin_inside_and_the_lack_of_activation_outside():
    masks = np.zeros((2, 1, 4), dtype=bool)
    masks[0, 0, 0], masks[1, 0, 1] = True, True
    cams = np.array([[[1.0, 0.0, 0.25, 0.0]]], dtype=np.float32)
    seed = seed_image(superpixels_of(masks, [2, 2]), cams, [1], 1.0)
    np.testing.assert_allclose(seed.confidence, [[1, 1, 0.75, 1]], atol=1e-6)


def test_label_map_from_cam_by_hand():
    cams = np.array([[[0.2, 0.6, 0.9]], [[0.1, 0.7, 0.3]]], dtype=np.float32)
    np.testing.assert_array_equal(label_map_from_cam(cams, [4, 2], 1, 3, 1.0), [[0, 2, 4]])
    # (1 - .2)^8 = .17 < .2
    np.testing.assert_array_equal(label_map_from_cam(cams, [4, 2], 1, 3, 8.0), [[4, 2, 4]])


@given(images(), st.sampled_from([0.3, 1.0, 3.0]))
def test_maps_one_by_one_are_all_of_them_at_once(image: tuple[np.ndarray, np.ndarray, np.ndarray], power: float):
    masks, _, cams = image
    size, classes = masks.shape[1:], CLASSES[: len(cams)]
    cams = np.clip(cams, 0, 1)
    scores = cam_probabilities(upsample(cams, *size), power)
    labels = np.array([0, *classes], dtype=np.uint8)[scores.argmax(axis=0)]
    np.testing.assert_array_equal(label_maps_from_cam(cams, classes, size[0], size[1], [5.0, power])[1], labels)
    np.testing.assert_array_equal(margins_of_cams(cams, size[0], size[1], power), margin(scores))


@pytest.mark.parametrize("uncovered", ["background", "map"])
def test_memory_is_that_of_one_map(uncovered):
    height, width, num_classes = 400, 500, 60
    masks = np.zeros((2, height, width), dtype=bool)
    masks[0, :100], masks[1, 50:300, :400] = True, True
    superpixels = superpixels_of(masks, [0, 1])
    cams = np.random.default_rng(0).random((num_classes, 5, 7), dtype=np.float32)
    tracemalloc.start()
    try:
        seed_image(superpixels, cams, list(range(1, 1 + num_classes)), 0.6, uncovered=uncovered)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12 * (4 * height * width)


def test_mistakes_are_named():
    superpixels, cams = superpixels_of(halves(), [2, 2]), np.zeros((1, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"alpha must be larger than 0, got 0.0"):
        seed_image(superpixels, cams, [1], 0.0)
    with pytest.raises(ValueError, match=r"1 class activation maps for 2 class indices"):
        seed_image(superpixels, cams, [1, 2], 0.6)
    with pytest.raises(ValueError, match=r"between 1 and 254, got \[0\]"):
        seed_image(superpixels, cams, [0], 0.6)
    with pytest.raises(ValueError, match=r"power must be larger than 0"):
        label_map_from_cam(cams, [1], 4, 8, float("nan"))
    with pytest.raises(ValueError, match=r"map of class 6 holds a value that is not finite"):
        seed_image(superpixels, np.full((1, 2, 2), np.nan, np.float32), [6], 0.6)


@given(images(), st.sampled_from([0.1, 0.5, 1.0]))
def test_pixels_too_close_to_call_become_255(image: tuple[np.ndarray, np.ndarray, np.ndarray], ignore_below: float):
    masks, level, cams = image
    superpixels, classes = superpixels_of(masks, level), CLASSES[: len(cams)]
    plain = seed_image(superpixels, cams, classes, 0.6)
    ignoring = seed_image(superpixels, cams, classes, 0.6, ignore_below=ignore_below)
    expected = np.where(plain.confidence < ignore_below, 255, plain.labels)
    np.testing.assert_array_equal(ignoring.labels, expected)
    np.testing.assert_array_equal(ignoring.confidence, plain.confidence)
    assert set(ignoring.missing) == set(classes) - set(np.unique(expected).tolist())


def test_a_labelled_class_can_be_kept():
    masks = np.concatenate([halves(), np.zeros((1, 4, 8), bool)])
    masks[2, :, :2] = True
    superpixels = superpixels_of(masks, [2, 2, 1])
    # The second class is weaker than the first on the left half, and nowhere else.
    cams = np.array([[[1.0, 1.0, 0.0, 0.0]], [[0.9, 0.1, 0.0, 0.0]]], dtype=np.float32)
    assert seed_image(superpixels, cams, [4, 9], 0.6).missing == (9,)
    kept = seed_image(superpixels, cams, [4, 9], 0.6, keep_labelled=True)
    assert kept.missing == ()
    # Its own best superpixel, painted over the higher level; the other class keeps the rest.
    np.testing.assert_array_equal(kept.labels, np.where(masks[2], 9, np.where(masks[0], 4, 0)))
    assert kept.superpixel_class[2] == 9
    assert not kept.confidence[masks[2]].any()


@given(images(), st.sampled_from([0.0, 0.4]))
def test_keeping_a_class_never_loses_another(image: tuple[np.ndarray, np.ndarray, np.ndarray], ignore_below: float):
    masks, level, cams = image
    superpixels, classes = superpixels_of(masks, level), CLASSES[: len(cams)]
    plain = seed_image(superpixels, cams, classes, 0.6, ignore_below)
    kept = seed_image(superpixels, cams, classes, 0.6, ignore_below, keep_labelled=True)
    assert set(kept.missing) <= set(plain.missing)
    for index in kept.missing:
        height = np.maximum(upsample(cams[[classes.index(index)]], *plain.labels.shape), 0)
        assert np.ptp(height) < 1e-4 or (height > height.min()).sum() < len(classes), "a pixel is left to each other"
    if not plain.missing:
        np.testing.assert_array_equal(kept.labels, plain.labels)


@given(images())
def test_painting_again_changes_nothing(image: tuple[np.ndarray, np.ndarray, np.ndarray]):
    """Idempotence: a second copy of every superpixel, of the same level and score, is the same seed."""
    masks, level, cams = image
    classes = CLASSES[: len(cams)]
    once = seed_image(superpixels_of(masks, level), cams, classes, 0.6)
    twice = seed_image(
        superpixels_of(np.concatenate([masks, masks]), np.concatenate([level, level])), cams, classes, 0.6
    )
    np.testing.assert_array_equal(twice.labels, once.labels)
    np.testing.assert_array_equal(twice.confidence, once.confidence)


@given(images(), st.randoms())
def test_order_of_the_classes_matters_in_ties_only(image: tuple[np.ndarray, np.ndarray, np.ndarray], random):
    masks, level, cams = image
    order = list(range(len(cams)))
    random.shuffle(order)
    classes = CLASSES[: len(cams)]
    seed = seed_image(superpixels_of(masks, level), cams, classes, 0.6)
    shuffled = seed_image(superpixels_of(masks, level), cams[order], [classes[i] for i in order], 0.6)
    np.testing.assert_array_equal(shuffled.scores[:, 1:], seed.scores[:, 1:][:, order])
    np.testing.assert_array_equal(shuffled.labels[seed.confidence > 0], seed.labels[seed.confidence > 0])


@given(images(), st.integers(0, 2))
def test_a_superpixel_under_a_higher_one_has_no_say(image: tuple[np.ndarray, np.ndarray, np.ndarray], level_of: int):
    """Painting order: with a mask of the highest level over everything, nothing below it is seen."""
    masks, level, cams = image
    everything = np.ones((1, *masks.shape[1:]), dtype=bool)
    above = superpixels_of(np.concatenate([masks, everything]), np.append(np.minimum(level, level_of), level_of + 1))
    labels = seed_image(above, cams, CLASSES[: len(cams)], 0.6).labels
    assert len(np.unique(labels)) == 1
