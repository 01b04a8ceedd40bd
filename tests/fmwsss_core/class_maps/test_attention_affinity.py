"""CAA against loops, and box masks against a flood fill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmwsss.core.class_maps.attention_affinity import BoxOn, box_mask, refine
from tests.references import affinity as reference

torch.set_num_threads(1)

GRID = (3, 5)


def _attention(seed: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # One column more, then dropped: rows of the real one sum to less than 1, the class token being left out.
    logits = torch.randn(tokens, tokens + 1, dtype=torch.float64, generator=generator) * 2
    return torch.softmax(logits, dim=1)[:, 1:]


@pytest.mark.parametrize("num_sinkhorn", [0, 1, 3])
@pytest.mark.parametrize("box_threshold", [None, 0.0, 0.4, 0.7])
@pytest.mark.parametrize("box_on", ["map", "result"])
@pytest.mark.parametrize("is_raw", [False, True])
def test_against_loops(num_sinkhorn: int, box_threshold: float | None, box_on: BoxOn, is_raw: bool):
    attention = _attention(num_sinkhorn, 15)
    cams = torch.rand(3, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) ** 3
    raw = torch.randn(3, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) if is_raw else None
    arguments = (GRID, box_threshold, num_sinkhorn)
    ours = refine(attention, cams, *arguments, box_on=box_on, spread=raw)
    spread = None if raw is None else raw.numpy()
    expected = reference.refine(attention.numpy(), cams.numpy(), *arguments, box_on, spread)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.3, 0.5, 0.99]))
def test_box_mask_against_a_flood_fill(data: st.DataObject, height: int, width: int, threshold: float):
    values = data.draw(st.lists(st.integers(0, 4), min_size=height * width, max_size=height * width))
    cam = np.array(values, dtype=np.float32).reshape(height, width) / 4
    np.testing.assert_array_equal(box_mask(cam, threshold), reference.box_mask(cam, threshold))


def test_box_mask_by_hand():
    cam = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0.5], [0, 0, 0, 1]], dtype=np.float32)
    expected = np.zeros((4, 4), dtype=bool)
    expected[:2, :2] = True  # touching at a corner is one region, and its box is filled
    expected[3, 3] = True  # the last row and column belong; a half is not strictly above .5
    np.testing.assert_array_equal(box_mask(cam, 0.5), expected)


def test_a_map_of_zeros_and_no_map():
    attention = _attention(0, 15)
    zeros = torch.zeros(2, 15, dtype=torch.float64)
    assert refine(attention, zeros, GRID, 0.4, 1).abs().max() == 0
    assert refine(attention, zeros[:0], GRID, 0.4, 1).shape == (0, 15)


def test_is_not_part_of_a_graph():
    cams = torch.rand(1, 15, dtype=torch.float64, requires_grad=True)
    assert not refine(_attention(0, 15), cams, GRID, 0.4, 1).requires_grad
