"""Class maps of several images at once against one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmwsss_core.clip import FrozenClip
from fmwsss_core.localise import map_classes, patch_grid
from fmwsss_core.prompts import handmade_embeddings
from fmwsss_core.toy.models import toy_clip
from fmwsss_core.toy.world import TOY, draw_scene

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return FrozenClip(toy_clip(), identity="toy")


def test_images_of_one_grid_go_together_and_give_what_each_gives_alone(clip: FrozenClip):
    patch = clip.patch_size
    images = [draw_scene(number).image[: 4 * patch - number, : 6 * patch] for number in range(3)]
    classes = [[1, 5], [], [2, 3, 12]]
    text = handmade_embeddings(clip, TOY)
    together = map_classes(clip, images, classes, *text, box_threshold=0.4, num_sinkhorn=1)
    for image, indices, maps in zip(images, classes, together, strict=True):
        (alone,) = map_classes(clip, [image], [indices], *text, box_threshold=0.4, num_sinkhorn=1)
        assert maps.cam.shape == (len(indices), 4, 6)
        np.testing.assert_allclose(maps.cam, alone.cam, atol=1e-4)
        np.testing.assert_allclose(maps.refined_cam, alone.refined_cam, atol=1e-4)
    assert 0.5 < max(maps.cam.max(initial=0) for maps in together) <= 1


def test_other_grids_are_refused(clip: FrozenClip):
    patch = clip.patch_size
    assert patch_grid(clip, 2 * patch, 2 * patch + 1) == (2, 3)
    images = [np.zeros((side, 2 * patch, 3), np.uint8) for side in (2 * patch, 2 * patch + 1)]
    with pytest.raises(ValueError, match="one patch grid"):
        map_classes(clip, images, [[1], [1]], *handmade_embeddings(clip, TOY), box_threshold=None, num_sinkhorn=0)
