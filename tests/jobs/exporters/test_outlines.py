"""Outlines that are filled again give the mask, whatever it looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy import ndimage

from fmwsss.jobs.exporters.outlines import corner_outlines, pixel_outlines

masks = st.integers(0, 2**56 - 1).map(lambda bits: np.array(list(f"{bits:056b}"), np.uint8).reshape(7, 8) > 0)


@given(masks)
def test_coco_s_tools_fill_outlines_to_the_mask(mask: np.ndarray) -> None:
    polygons: Any = [[float(value) for point in loop for value in point] for loop in corner_outlines(mask)]
    if not mask.any():
        assert not polygons
        return
    filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
    np.testing.assert_array_equal(filled > 0, mask)


@given(masks)
def test_outlines_through_pixels_are_inside_and_hold_the_mask(mask: np.ndarray) -> None:
    image = Image.new("L", (8, 7))
    for loop in pixel_outlines(mask):
        ImageDraw.Draw(image).polygon(loop if len(loop) > 2 else loop * 3, fill=1, outline=1)
    filled = np.asarray(image) > 0
    without_holes = np.zeros_like(mask)
    regions, count = ndimage.label(mask, structure=np.ones((3, 3)))  # type: ignore[misc]
    for number in range(1, count + 1):
        without_holes |= ndimage.binary_fill_holes(regions == number)
    assert not (mask & ~filled).any()
    assert not (filled & ~without_holes).any()
