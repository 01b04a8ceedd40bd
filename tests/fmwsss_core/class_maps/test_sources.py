"""Sources behind one interface: each alone, in windows, mirrored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmwsss.core.class_maps.clip_maps import ClassMaps, map_classes, patch_grid
from fmwsss.core.class_maps.patch_embedding import PatchEmbedding
from fmwsss.core.class_maps.sources import MapSource, PatchText, View, Windows
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY, draw_scene

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return FrozenClip(toy_clip(), identity="toy")


def _maps(clip: FrozenClip, image: np.ndarray, source: MapSource | None, **settings) -> ClassMaps:
    text = handmade_embeddings(clip, TOY)
    arguments: dict = {"box_threshold": 0.4, "num_sinkhorn": 1, "num_attention_blocks": 0, **settings}
    return map_classes(clip, [image], [[1, 5]], *text, source=source, **arguments)[0]


def test_patch_maps_are_cosines_from_0_to_1(clip: FrozenClip):
    image, (foreground, _) = draw_scene(1).image, handmade_embeddings(clip, TOY)
    pixels = clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    features = clip.encode_image(pixels)
    patches = torch.nn.functional.normalize(clip.local_embedding(features.last_block_input)[0], dim=1)
    found = _maps(clip, image, PatchText())
    for own, class_index in zip(found.cam, (1, 5), strict=True):
        cosine = (patches @ foreground[class_index - 1]).reshape(features.grid)
        expected = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        np.testing.assert_allclose(own, expected, atol=1e-5)
    assert found.refined_cam is None
    assert found.background is None
    refined = _maps(clip, image, PatchText(), num_attention_blocks=2)
    np.testing.assert_allclose(refined.cam, found.cam, atol=1e-5)
    assert refined.refined_cam is not None
    assert refined.refined_cam.shape == found.cam.shape


def test_a_softmax_has_a_map_of_the_background_too(clip: FrozenClip):
    found = _maps(clip, draw_scene(1).image, PatchText(softmax_scale=clip.logit_scale), scales=(1.0, 1.5))
    assert found.background is not None
    assert found.background.shape == found.cam.shape[1:]
    assert 0 <= found.background.min() < found.background.max() <= 1


def test_the_maps_of_a_mirrored_image_are_averaged_in_upright(clip: FrozenClip):
    image = draw_scene(2).image[:64, :96]
    both = _maps(clip, image, PatchText(), flip=True)
    upright, mirrored = (_maps(clip, own, PatchText()) for own in (image, image[:, ::-1].copy()))
    mean = (upright.cam + mirrored.cam[:, :, ::-1]) / 2
    low, high = mean.min(axis=(1, 2), keepdims=True), mean.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(both.cam, (mean - low) / (high - low), atol=1e-5)
    assert np.abs(both.cam - upright.cam).max() > 1e-3


@pytest.mark.parametrize("embedding", [PatchEmbedding(), PatchEmbedding(similarity_depth=0.5)])
def test_windows_against_one_at_a_time(clip: FrozenClip, embedding: PatchEmbedding):
    image, patch = draw_scene(3).image, clip.patch_size
    source = PatchText(embedding, windows=Windows(side_patches=5, stride_patches=3))
    found = _maps(clip, image, source)
    height, width = patch_grid(clip, *image.shape[:2])
    foreground, background = handmade_embeddings(clip, TOY)
    pixels = clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    sums, counts = torch.zeros(height, width, 2), torch.zeros(height, width, 1)

    def starts(length: int) -> list[int]:
        found = []
        for start in range(0, length, 3):
            found.append(min(start, length - 5))
            if start + 5 >= length:
                return found
        return found

    present = torch.ones(1, len(foreground), dtype=torch.bool)
    for top in starts(height):
        for left in starts(width):
            cut = pixels[:, :, top * patch : (top + 5) * patch, left * patch : (left + 5) * patch]
            blocks = tuple(embedding.blocks_kept(4))
            view = View(clip, cut, present, foreground, background, blocks)
            cosine = embedding.embed(clip, view.features, view.kept)[0] @ foreground[[0, 4]].T
            sums[top : top + 5, left : left + 5] += cosine.reshape(5, 5, 2)
            counts[top : top + 5, left : left + 5] += 1
    mean = (sums / counts).permute(2, 0, 1).numpy()
    low, high = mean.min(axis=(1, 2), keepdims=True), mean.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.cam, (mean - low) / (high - low), atol=1e-4)


def test_a_window_larger_than_the_image_is_the_image(clip: FrozenClip):
    image = draw_scene(3).image
    whole, cut = (_maps(clip, image, PatchText(windows=own)) for own in (None, Windows(100, 50)))
    np.testing.assert_allclose(cut.cam, whole.cam, atol=1e-5)
