"""Decisions between texts against loops, their gradient, and windows that cover a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmwsss.core.class_maps.patch_similarity import decide, min_max, windows_of
from tests.references import patch_maps as reference

PRESENT = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])


@pytest.mark.parametrize("softmax_scale", [None, 10.0])
@pytest.mark.parametrize("with_absent", [False, True])
@pytest.mark.parametrize("num_words", [0, 2])
def test_decisions_against_loops(softmax_scale: float | None, with_absent: bool, num_words: int):
    similarity = torch.rand(3, 5, 3 + num_words, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = decide(similarity, PRESENT, softmax_scale, with_absent)
    rows, background = reference.decide(similarity, PRESENT, softmax_scale, with_absent)
    assert list(zip(found.image.tolist(), found.class_index.tolist(), strict=True)) == [row[:2] for row in rows]
    np.testing.assert_allclose(found.maps, np.array([row[2] for row in rows]), rtol=1e-12)
    assert (found.background is None) == (background is None)
    if found.background is not None and background is not None:
        np.testing.assert_allclose(found.background, background, rtol=1e-12)


def test_maps_reach_the_texts():
    patches = torch.nn.functional.normalize(torch.randn(3, 5, 4, dtype=torch.float64), dim=-1)
    text = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: decide(patches @ t.T, PRESENT, 3.0).maps, (text,))


def test_min_max_and_a_map_without_contrast():
    maps = torch.tensor([[-3.0, -1.0, -2.0], [2.0, 2.0, 2.0]])
    torch.testing.assert_close(min_max(maps), torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16))
def test_windows_cover_the_grid_and_none_is_smaller(height: int, width: int, side: int, stride: int):
    stride = min(stride, side)
    counts = np.zeros((height, width), int)
    for rows, columns in windows_of((height, width), side, stride):
        own = counts[rows, columns]
        assert own.shape == (min(side, height), min(side, width))
        own += 1
    assert counts.min() >= 1
