"""What people painted over a seed, against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from fmwsss.core.seeds.corrections import PaintedRegion, with_corrections
from fmwsss.core.seeds.sams import seed_image
from fmwsss.core.superpixels.masks import Superpixels


def superpixels() -> Superpixels:
    masks = np.random.default_rng(3).random((4, 9, 7)) < 0.4
    numbers = {"predicted_iou": np.ones(4, np.float32), "stability": np.ones(4, np.float32)}
    return Superpixels.from_masks(masks, level=np.array([0, 1, 2, 2], np.int8), **numbers)


@pytest.mark.parametrize("order", [(), (0,), (2, 0, 3), (1, 1)])
def test_the_last_word_of_each_pixel_counts(order: tuple[int, ...]) -> None:
    own = superpixels()
    cams = np.random.default_rng(1).random((2, 3, 3)).astype(np.float32)
    seed = seed_image(own, cams, [3, 5], alpha=0.5)
    regions = [PaintedRegion(9, 7, own.rle[index], place * 2 % 7) for place, index in enumerate(order)]
    corrected = with_corrections(seed, own, regions, [3, 5])
    labels, confidence = seed.labels.copy(), seed.confidence.copy()
    for y in range(9):
        for x in range(7):
            for region, index in zip(regions, order, strict=True):
                if own.mask(index)[y, x]:
                    labels[y, x], confidence[y, x] = region.class_index, 1
    np.testing.assert_array_equal(corrected.labels, labels)
    np.testing.assert_array_equal(corrected.confidence, confidence)
    last = {index: region.class_index for region, index in zip(regions, order, strict=True)}
    expected = [last.get(index, int(seed.superpixel_class[index])) for index in range(4)]
    assert corrected.superpixel_class.tolist() == expected
    assert corrected.missing == tuple(index for index in (3, 5) if not (labels == index).any())
    np.testing.assert_array_equal(corrected.scores, seed.scores)


def test_a_region_of_another_image_size_is_passed_over() -> None:
    own = superpixels()
    seed = seed_image(own, np.ones((1, 2, 2), np.float32), [1], alpha=0.5)
    corrected = with_corrections(seed, own, [PaintedRegion(7, 9, own.rle[0], 4)], [1])
    np.testing.assert_array_equal(corrected.labels, seed.labels)
