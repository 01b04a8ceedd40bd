"""Class maps on a device are the CPU's."""

from __future__ import annotations

import numpy as np
import pytest

from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY, draw_scene
from tests.support.card import Card


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": (1.0, 1.5)}])
def test_maps_are_those_of_the_cpu(card: Card, options: dict):
    images, classes = [draw_scene(number).image[:96, :120] for number in (0, 2, 3)], [[1, 5], [], [2, 3, 12]]
    found = {}
    for device in ("cpu", card.device):
        clip = FrozenClip(toy_clip(), identity="toy").to(device)
        text = handmade_embeddings(clip, TOY)
        found[str(device)] = map_classes(clip, images, classes, *text, box_threshold=0.4, num_sinkhorn=1, **options)
    atol = 2e-4  # the CPU has layers of its own (`clip/frozen_linear.py`), so the double differs in rounding too
    for ours, expected in zip(found[str(card.device)], found["cpu"], strict=True):
        np.testing.assert_allclose(ours.cam, expected.cam, atol=atol)
        assert ours.refined_cam is not None
        assert expected.refined_cam is not None
        np.testing.assert_allclose(ours.refined_cam, expected.refined_cam, atol=atol)
    assert max(maps.cam.max(initial=0) for maps in found["cpu"]) > 0.5
