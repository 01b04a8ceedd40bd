"""Proposals on a device: the CPU's masks, whatever the batch, in few waits, and nothing left behind."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import pack_bits, propose
from fmwsss.core.toy.models import toy_sam
from fmwsss.core.toy.world import draw_scene
from tests.support.card import Card

SETTINGS = ProposalSettings(
    points_per_side=16, points_per_batch=64, predicted_iou_threshold=0.5, stability_threshold=0.5
)
MAX_WAITS = 45


@pytest.fixture
def sam(card: Card) -> Sam:
    return copy.deepcopy(toy_sam()).to(card.device)


def photograph(number: int, height: int = 128, width: int = 128) -> np.ndarray:
    scene = draw_scene(number).image
    return np.ascontiguousarray(np.tile(scene, (3, 3, 1))[:height, :width])


def assert_same_masks(card: Card, found: Superpixels, expected: Superpixels) -> None:
    """The same bytes on the double; on a card a pixel of 10,000 may lie on the other side of the threshold."""
    if card.double is not None:
        assert found.rle == expected.rle
        return
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found.level, expected.level)
    differing = (found.masks() != expected.masks()).sum(axis=(1, 2))
    assert (differing <= np.maximum(1, expected.area_px() // 10_000)).all()
    np.testing.assert_allclose(found.predicted_iou, expected.predicted_iou, atol=1e-4)


@pytest.mark.parametrize("size", [(128, 128), (97, 150), (300, 211)])
@pytest.mark.parametrize("crop_layers", [0, 1])
def test_masks_are_those_of_the_cpu(card: Card, sam: Sam, size: tuple[int, int], crop_layers: int):
    settings = dataclasses.replace(SETTINGS, crop_layers=crop_layers)
    found, expected = (propose(one, photograph(3, *size), settings) for one in (sam, toy_sam()))
    assert len(found) > 3
    assert_same_masks(card, found, expected)


def test_points_in_a_batch_change_no_mask(card: Card, sam: Sam):
    settings = dataclasses.replace(SETTINGS, points_per_side=9)
    found = [propose(sam, photograph(3), dataclasses.replace(settings, points_per_batch=n)) for n in (1, 64, 256)]
    for other in found[1:]:
        assert_same_masks(card, other, found[0])


def test_an_image_is_the_same_after_another(card: Card, sam: Sam):
    settings = dataclasses.replace(SETTINGS, points_per_batch=None)
    first = propose(sam, photograph(3), settings)
    propose(sam, photograph(4, 300, 200), settings)
    again = propose(sam, photograph(3), settings)
    assert first.rle == again.rle
    np.testing.assert_array_equal(first.predicted_iou, again.predicted_iou)
    np.testing.assert_array_equal(first.stability, again.stability)


def test_an_image_makes_the_host_wait_seldom(card: Card, sam: Sam):
    propose(sam, photograph(3), SETTINGS)
    with card.waits() as waits:
        found = propose(sam, photograph(4), SETTINGS)
    assert len(found) > 3
    assert 0 < waits.total() <= MAX_WAITS, waits.most_common()


def test_images_leave_nothing_on_the_device(card: Card, sam: Sam):
    settings = dataclasses.replace(SETTINGS, points_per_side=8)
    propose(sam, photograph(3), settings)
    before_bytes = card.allocated_bytes()
    for number in range(8):
        propose(sam, photograph(number), settings)
    assert card.allocated_bytes() <= before_bytes


def test_too_little_memory_halves_the_batch_and_changes_no_mask(card: Card, sam: Sam):
    expected = propose(sam, photograph(3), SETTINGS)
    # Image tokens of 256 points alone take more.
    with card.room_for(64 << 20):
        found = propose(sam, photograph(3), dataclasses.replace(SETTINGS, points_per_batch=256))
    assert_same_masks(card, found, expected)


@pytest.mark.parametrize("num_bits", [1, 8, 13, 101])
def test_bits_are_packed_as_numpy_packs_them(card: Card, num_bits: int):
    bits = torch.rand(5, num_bits, generator=torch.Generator().manual_seed(num_bits)) < 0.5
    packed = pack_bits(bits.to(card.device)).cpu().numpy()
    np.testing.assert_array_equal(packed, np.packbits(bits.numpy(), axis=1))
