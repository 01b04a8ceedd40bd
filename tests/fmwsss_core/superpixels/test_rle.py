"""Runs from bits and COCO's strings, against pycocotools and loops over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from fmwsss.core.superpixels.rle import Runs, cut_by_column, merge_runs, runs_of_bits, runs_of_coco, runs_to_coco

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9))


def packed(masks: np.ndarray) -> np.ndarray:
    return np.packbits(masks.transpose(0, 2, 1).reshape(len(masks), -1), axis=1)


def naive_runs(masks: np.ndarray) -> list[tuple[int, int, int]]:
    found = []
    for owner, mask in enumerate(masks):
        flat = [False, *mask.ravel(order="F").tolist(), False]
        starts = [i for i in range(len(flat) - 1) if flat[i + 1] and not flat[i]]
        stops = [i for i in range(len(flat) - 1) if flat[i] and not flat[i + 1]]
        found += [(owner, start, stop) for start, stop in zip(starts, stops, strict=True)]
    return found


def as_list(runs: Runs) -> list[tuple[int, int, int]]:
    return list(zip(*(values.tolist() for values in runs), strict=True))


@given(MASKS)
def test_runs_of_bits_are_those_of_the_pixels(masks: np.ndarray):
    assert as_list(runs_of_bits(packed(masks))) == naive_runs(masks)


@given(MASKS)
def test_strings_are_those_of_pycocotools_and_come_back(masks: np.ndarray):
    runs, num_pixels = runs_of_bits(packed(masks)), masks[0].size
    rle = runs_to_coco(runs, len(masks), num_pixels)
    assert rle == tuple(coco.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks)
    assert as_list(runs_of_coco(rle, num_pixels)) == as_list(runs)


@given(st.lists(st.integers(1, 2**28), min_size=1, max_size=12), st.booleans())
def test_lengths_of_any_size_are_written_as_pycocotools_writes_them(lengths: list[int], starts_inside: bool):
    counts = [0, *lengths] if starts_inside else lengths
    num_pixels, bounds = sum(counts), np.cumsum(counts)
    bounds = bounds[:-1] if len(counts) % 2 else bounds
    runs = Runs(np.zeros(len(bounds) // 2, np.int64), bounds[::2], bounds[1::2])
    uncompressed: Any = {"size": [num_pixels, 1], "counts": counts}
    rle = runs_to_coco(runs, 1, num_pixels)
    assert rle == (coco.frPyObjects(uncompressed, num_pixels, 1)["counts"],)
    assert as_list(runs_of_coco(rle, num_pixels)) == as_list(runs)


@pytest.mark.parametrize("num_masks", [0, 3])
def test_masks_without_a_pixel(num_masks: int):
    runs = runs_of_bits(np.zeros((num_masks, 2), np.uint8))
    assert as_list(runs) == []
    rle = runs_to_coco(runs, num_masks, 12)
    assert rle == tuple(coco.encode(np.zeros((3, 4), np.uint8, order="F"))["counts"] for _ in range(num_masks))
    assert as_list(runs_of_coco(rle, 12)) == []


@given(MASKS)
def test_cut_by_column_and_merged_again(masks: np.ndarray):
    runs, height = runs_of_bits(packed(masks)), masks.shape[1]
    cut = cut_by_column(runs, height)
    assert (cut.start // height == (cut.stop - 1) // height).all()
    assert as_list(merge_runs([cut])) == as_list(runs)
    odd = np.arange(len(cut.start)) % 2 == 1
    assert as_list(merge_runs([cut.select(odd), cut.select(~odd)])) == as_list(runs)
