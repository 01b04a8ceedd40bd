"""Outlines to label maps: the small lie on the large, and what is wrong with one is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from fmwsss.core.images import ImageError
from fmwsss.core.instances import paint_instances


@given(st.lists(st.tuples(st.sampled_from([1, 2, 255]), st.integers(0, 2**48 - 1)), max_size=6))
def test_run_lengths_as_a_loop_over_pixels_paints_them(told: list[tuple[int, int]]) -> None:
    masks = [(label, np.array(list(f"{bits:048b}"), np.uint8).reshape(6, 8)) for label, bits in told]
    instances = []
    for index, (label, mask) in enumerate(masks):
        rle: Any = coco_mask.encode(np.asfortranarray(mask))
        counts = rle["counts"].decode()
        if index % 2:  # not compressed: lengths of runs, the first of zeros
            flat = [0, *mask.ravel(order="F").tolist()]
            starts = [at for at in range(1, len(flat)) if flat[at] != flat[at - 1]]
            counts = np.diff([1, *starts, len(flat)]).tolist()
        instances.append({"label": label, "segmentation": {"size": [6, 8], "counts": counts}})
    painted = paint_instances(instances, 6, 8)
    for row in range(6):
        for column in range(8):
            there = [(label != 255, -mask.sum(), index, label) for index, (label, mask) in enumerate(masks)
                     if mask[row, column]]  # fmt: skip
            expected = max(there)[3] if there else 0
            assert painted[row, column] == expected


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 3], "counts": [9]}, "an outline is of 3 x 3 pixels"),
        ({"size": [6, 8], "counts": [0, 500]}, "run lengths do not fill"),
        ({"size": [6, 8], "counts": [60, -12]}, "run lengths do not fill"),
        ({"counts": [48]}, "can't be read"),
        ([["a", 1, 2, 3, 4, 5]], "can't be read"),
    ],
)
def test_an_outline_that_is_none_is_one_line(segmentation: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        paint_instances([{"label": 1, "segmentation": segmentation}], 6, 8)


def test_polygons_of_less_than_three_points_are_nothing() -> None:
    assert not paint_instances([{"label": 1, "segmentation": [[1, 1, 2, 2]]}], 6, 8).any()
