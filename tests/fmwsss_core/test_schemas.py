"""Rows and what the method works on: the same on both sides, with every schema as it is written to Parquet."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fmwsss.core.schemas import (
    FAILURES,
    SUPERPIXELS,
    failure_row,
    features_bytes,
    features_from_bytes,
    features_to_bytes,
    maps_from_bytes,
    maps_to_bytes,
    superpixels_from_row,
    superpixels_row,
)
from fmwsss.core.superpixels.masks import Superpixels


def through_parquet(rows: list[dict], schema: pa.Schema) -> list[dict]:
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return pq.read_table(BytesIO(buffer.getvalue())).to_pylist()


@settings(deadline=None)
@given(array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=9), st.integers(0, 2**32 - 1))
def test_superpixels_come_back(shape: tuple[int, int, int], seed: int) -> None:
    num, height, width = shape[0], shape[1] + 1, shape[2] + 1
    rng = np.random.default_rng(seed)
    masks = rng.random((num, height, width)) < 0.5
    level = rng.integers(0, 3, num).astype(np.int8)
    scores = rng.random((2, num)).astype(np.float32)
    superpixels = Superpixels.from_masks(masks, level, scores[0], scores[1])
    (row,) = through_parquet([superpixels_row("a", superpixels)], SUPERPIXELS)
    assert row["image_id"] == "a"
    back = superpixels_from_row(row)
    np.testing.assert_array_equal(back.masks(), masks)
    assert back.rle == superpixels.rle
    for name in ("level", "predicted_iou", "stability"):
        np.testing.assert_array_equal(getattr(back, name), getattr(superpixels, name))
        assert getattr(back, name).dtype == getattr(superpixels, name).dtype


@settings(deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=8), elements=st.floats(0, 1, width=32)))
def test_maps_come_back_within_half_a_thousandth(maps: np.ndarray) -> None:
    back = maps_from_bytes(maps_to_bytes(maps), *maps.shape)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, maps, atol=2.5e-4)
    assert maps_to_bytes(back) == maps_to_bytes(maps)


def test_maps_are_row_major_whatever_their_memory() -> None:
    maps = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 32
    assert maps_to_bytes(np.asfortranarray(maps)) == maps.astype("<f2").tobytes()


def test_maps_of_another_size_are_refused() -> None:
    data = maps_to_bytes(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"^2 maps of 3 x 5 take 60 bytes, not 48$"):
        maps_from_bytes(data, 2, 3, 5)


def test_a_failure_is_one_line_and_names_no_machine() -> None:
    try:
        np.zeros(3).reshape(2, 2)
    except ValueError as error:
        (row,) = through_parquet([failure_row("a", "images", error)], FAILURES)
    assert (row["image_id"], row["stage"], row["error_type"]) == ("a", "images", "ValueError")
    assert row["message"] == "cannot reshape array of size 3 into shape (2,2)"
    assert row["traceback"].startswith("fmwsss_core/test_schemas.py:")
    assert failure_row("a", "images", KeyError())["message"] == "KeyError"
    assert failure_row("a", "images", ValueError("two\n  lines"))["message"] == "two lines"


def test_features_keep_three_digits_at_any_scale():
    generator = np.random.default_rng(0)
    given = [generator.normal(size=(1, 6)) * 1e3, generator.normal(size=(4, 5)) * 1e-9, np.zeros((2, 2))]
    shapes = [(1, 6), (4, 5), (2, 2)]
    data = features_to_bytes(*(array.astype(np.float32) for array in given))
    assert len(data) == features_bytes(*shapes)
    for array, again in zip(given, features_from_bytes(data, *shapes), strict=True):
        assert np.abs(again - array).max() <= 5e-4 * np.abs(array).max()
    with pytest.raises(ValueError, match="bytes, not"):
        features_from_bytes(data[:-2], *shapes)
