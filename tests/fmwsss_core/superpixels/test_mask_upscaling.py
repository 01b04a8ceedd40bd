"""Enlarging in one step against `Sam.postprocess_masks`: every decision is the same, also at the thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam
from segment_anything.utils.amg import batched_mask_to_box
from torch import nn

from fmwsss.core.superpixels.mask_upscaling import Enlarger


class CountingSam(Sam):
    """Notes how many masks were enlarged in the original way."""

    num_enlarged = 0

    def postprocess_masks(self, *arguments: Any) -> torch.Tensor:
        self.num_enlarged += arguments[0].shape[1]
        return super().postprocess_masks(*arguments)


def sam_of(side: int) -> CountingSam:
    encoder = ImageEncoderViT(img_size=side, patch_size=16, embed_dim=2, depth=0, num_heads=1, out_chans=2)
    prompts = PromptEncoder(4, (side // 16, side // 16), (side, side), mask_in_chans=4)
    return CountingSam(encoder, prompts, nn.Identity())  # pyright: ignore[reportArgumentType]


SAM = sam_of(64)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.integers(0, 2**31),
    st.sampled_from([0.5, 1.0]),
    st.booleans(),
)
def test_masks_counts_and_boxes_are_the_originals(
    input_size: tuple[int, int], image_size: tuple[int, int], seed: int, offset: float, coarse: bool
):
    generator = torch.Generator().manual_seed(seed)
    logits = 12 * torch.randn(5, 16, 16, generator=generator)
    logits[0] -= 60  # nothing of it is left
    if coarse:  # numbers that meet the thresholds exactly
        logits = logits.div(4).round() / 2
    enlarger = Enlarger(SAM, (16, 16), input_size, image_size)
    measured, masks = enlarger.measure(logits, offset), enlarger.masks(logits)

    original = SAM.postprocess_masks(logits[None], input_size, image_size)[0]
    assert torch.equal(masks.transpose(1, 2), original > 0)
    assert torch.equal(measured.above, (original > offset).sum(dim=(1, 2)))
    assert torch.equal(measured.below, (original > -offset).sum(dim=(1, 2)))
    filled = (original > 0).flatten(1).any(dim=1)
    assert torch.equal(measured.filled, filled)
    assert torch.equal(measured.boxes[filled], batched_mask_to_box((original > 0)[filled]).long())


def test_few_doubtful_masks_are_rounded_as_many_are_on_one_thread():
    logits = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(3)).mul(3).round() / 2
    enlarger, num_threads = Enlarger(SAM, (16, 16), (1, 19), (3, 126)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = enlarger.measure(logits, 1.0)
        original = SAM.postprocess_masks(logits[None], (1, 19), (3, 126))[0]
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(measured.below, (original > -1).sum(dim=(1, 2)))
    assert torch.equal(measured.above, (original > 1).sum(dim=(1, 2)))


def test_the_original_way_is_rarely_needed():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(20 * torch.randn(1, 40, 8, 8), (64, 64), mode="bicubic")[0]
    sam = sam_of(256)
    Enlarger(sam, (64, 64), (256, 200), (375, 293)).measure(smooth, 1.0)
    assert sam.num_enlarged < 10


def test_a_logit_at_the_threshold_is_decided_as_the_original_decides_it():
    # A plane through 0 whose zeros lie on pixels, in numbers that are no exact binary fractions.
    ramp = torch.arange(16, dtype=torch.float32).sub(7.5).mul(0.1).expand(1, 16, 16).contiguous()
    sam = sam_of(64)
    masks = Enlarger(sam, (16, 16), (64, 64), (31, 31)).masks(ramp)
    assert sam.num_enlarged == 1
    np.testing.assert_array_equal(masks[0].T, sam.postprocess_masks(ramp[None], (64, 64), (31, 31))[0, 0] > 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (4000, 3)])
def test_images_of_any_size(size: tuple[int, int]):
    enlarger = Enlarger(SAM, (16, 16), (64, 64), size)
    assert enlarger.masks(torch.ones(2, 16, 16)).shape == (2, size[1], size[0])
