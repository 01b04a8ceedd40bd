"""Run lengths, overlaps, the occupation filter and pooling against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fmwsss.core.superpixels.masks import Superpixels, intersections, occupation_filter, pooled_means, topmost
from tests.references import masks as reference


@st.composite
def masks(draw, min_masks: int = 0, max_masks: int = 8) -> np.ndarray:
    """Masks of any shape, empty and full ones among them, and blocks as in photographs."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    drawn = []
    for _ in range(draw(st.integers(min_masks, max_masks))):
        if draw(st.booleans()):
            drawn.append(draw(hnp.arrays(bool, (height, width))))
        else:
            top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            block = np.zeros((height, width), dtype=bool)
            block[top : draw(st.integers(top, height)), left : draw(st.integers(left, width))] = True
            drawn.append(block)
    return np.array(drawn, dtype=bool).reshape(-1, height, width)


def superpixels_of(array: np.ndarray, level: np.ndarray | None = None) -> Superpixels:
    zeros = np.zeros(len(array), dtype=np.float32)
    return Superpixels.from_masks(array, np.zeros(len(array), np.int8) if level is None else level, zeros, zeros)


@given(masks())
def test_masks_come_back_from_their_run_lengths(array: np.ndarray):
    superpixels = superpixels_of(array)
    assert len(superpixels) == len(array)
    np.testing.assert_array_equal(superpixels.masks(), array)
    for index, mask in enumerate(array):
        np.testing.assert_array_equal(superpixels.mask(index), mask)
    np.testing.assert_array_equal(superpixels.area_px(), array.sum(axis=(1, 2)))
    np.testing.assert_array_equal(superpixels.boxes_px(), np.array([reference.box(m) for m in array]).reshape(-1, 4))


def painted(superpixels: Superpixels, num_masks: int) -> np.ndarray:
    """Masks from the runs."""
    flat = np.zeros((num_masks, superpixels.width_px * superpixels.height_px), dtype=bool)
    for owner, start, stop in zip(*superpixels.runs, strict=True):
        assert stop > start
        flat[owner, start:stop] = True
    return flat.reshape(num_masks, superpixels.width_px, superpixels.height_px).transpose(0, 2, 1)


@given(masks())
def test_runs_cover_exactly_the_masks(array: np.ndarray):
    superpixels = superpixels_of(array)
    np.testing.assert_array_equal(painted(superpixels, len(array)), array)
    ranks = list(zip(superpixels.runs.owner.tolist(), superpixels.runs.start.tolist(), strict=True))
    assert ranks == sorted(ranks)


def test_runs_of_large_masks_with_long_and_alternating_lengths():
    # Lengths of several characters, and negative differences of them.
    array = np.zeros((3, 700, 900), dtype=bool)
    array[0, :, 100:350] = True
    array[0, ::2, 400] = True
    array[0, 3:690, 500:700] = True
    array[2, 5:, ::3] = True
    np.testing.assert_array_equal(painted(superpixels_of(array), 3), array)


def test_more_masks_than_a_byte_counts():
    array = np.random.default_rng(0).random((300, 9, 7)) < 0.3
    superpixels = superpixels_of(array, np.arange(300, dtype=np.int8) % 3)
    np.testing.assert_array_equal(superpixels.area_px(), array.sum(axis=(1, 2)))
    np.testing.assert_array_equal(superpixels.boxes_px(), [reference.box(mask) for mask in array])
    np.testing.assert_array_equal(intersections(superpixels, superpixels)[7], (array[7] & array).sum(axis=(1, 2)))
    kept = occupation_filter(superpixels, 0.3)
    assert kept.rle == tuple(superpixels.rle[i] for i in reference.occupation_filter(array, superpixels.level, 0.3))


@given(masks(), st.data())
def test_topmost_is_the_last_painted(array: np.ndarray, data):
    order = np.array(data.draw(st.permutations(range(len(array)))), dtype=np.int64)
    expected = np.full(array.shape[1:], -1)
    for index in order:
        expected[array[index]] = index
    np.testing.assert_array_equal(topmost(superpixels_of(array), order), expected)


@given(masks(), st.data())
def test_select_keeps_the_order_asked_for(array: np.ndarray, data):
    order = data.draw(st.permutations(range(len(array))))
    chosen = superpixels_of(array, np.arange(len(array), dtype=np.int8)).select(order)
    np.testing.assert_array_equal(chosen.masks(), array[order])
    np.testing.assert_array_equal(chosen.level, order)


@given(masks())
def test_intersections_are_exact(array: np.ndarray):
    superpixels, half = superpixels_of(array), superpixels_of(array[::2])
    np.testing.assert_array_equal(intersections(superpixels, half), reference.intersections(array, array[::2]))


def test_intersections_of_millions_of_pixels_are_exact():
    # More pixels than float32 can count.
    array = np.ones((2, 4200, 4200), dtype=bool)
    array[1, 0, 0] = False
    superpixels = superpixels_of(array)
    np.testing.assert_array_equal(
        intersections(superpixels, superpixels), [[17_640_000, 17_639_999], [17_639_999, 17_639_999]]
    )


@given(masks(), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]), st.data())
def test_occupation_filter_is_the_naive_one(array: np.ndarray, threshold: float, data):
    array = array[array.any(axis=(1, 2))]
    level = data.draw(hnp.arrays(np.int8, len(array), elements=st.integers(0, 2)))
    kept = reference.occupation_filter(array, level, threshold)
    np.testing.assert_array_equal(occupation_filter(superpixels_of(array, level), threshold).masks(), array[kept])


def test_occupation_compares_with_single_masks_and_strictly():
    row = np.zeros((4, 1, 10), dtype=bool)
    row[0, 0, :2] = True  # whole, covers .2 of the part
    row[1, 0, 2:4] = True  # whole, covers another .2: their union of .4 would drop it at .3
    row[2, 0, :] = True  # part
    row[3, 0, 5:] = True  # sub-part inside the part
    superpixels = superpixels_of(row, np.array([2, 2, 1, 0], dtype=np.int8))
    np.testing.assert_array_equal(occupation_filter(superpixels, 0.3).level, [2, 2, 1])
    # At .2 the part goes; dropped masks occupy nothing, so the sub-part stays.
    np.testing.assert_array_equal(occupation_filter(superpixels, 0.2).level, [2, 2, 0])


@given(masks(), st.data())
def test_pooled_means_are_the_naive_ones(array: np.ndarray, data):
    num_maps = data.draw(st.integers(0, 3))
    maps = data.draw(hnp.arrays(np.float32, (num_maps, *array.shape[1:]), elements=st.floats(-4, 4, width=32)))
    pooled = pooled_means(superpixels_of(array), maps)
    np.testing.assert_allclose(pooled, reference.pooled_means(array, maps), atol=1e-10)


def test_pooled_means_of_a_large_image_lose_nothing_to_the_prefix_sums():
    generator = np.random.default_rng(0)
    maps = generator.random((2, 1500, 2000), dtype=np.float32)
    array = np.zeros((2, 1500, 2000), dtype=bool)
    array[0, 1499, 1990:] = True
    array[1] = generator.random((1500, 2000)) < 0.5
    expected = [[maps[c][m].mean(dtype=np.float64) for c in range(2)] for m in array]
    np.testing.assert_allclose(pooled_means(superpixels_of(array), maps), expected, atol=1e-9)


def test_no_superpixels():
    empty = superpixels_of(np.zeros((0, 4, 5), dtype=bool))
    assert len(empty) == 0
    assert empty.masks().shape == (0, 4, 5)
    assert empty.boxes_px().shape == (0, 4)
    assert empty.area_px().shape == (0,)
    assert len(occupation_filter(empty, 0.3)) == 0
    assert pooled_means(empty, np.ones((2, 4, 5), dtype=np.float32)).shape == (0, 2)


def test_arrays_of_different_lengths_are_refused():
    one = np.zeros(1, dtype=np.float32)
    with pytest.raises(AssertionError):
        Superpixels(2, 2, np.zeros(1, np.int8), one, one, (b"4", b"4"))
