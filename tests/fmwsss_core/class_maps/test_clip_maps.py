"""Class maps of several images at once against one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmwsss.core.class_maps.attention_affinity import AffinityMap, BoxOn
from fmwsss.core.class_maps.clip_maps import ClassMaps, images_at_once, map_classes, patch_grid
from fmwsss.core.class_maps.softmax_gradcam import softmax_gradcam
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY, draw_scene
from tests.references import affinity as affinity_reference
from tests.references import softmax_gradcam as maps_reference

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
        assert maps.refined_cam is not None
        assert alone.refined_cam is not None
        np.testing.assert_allclose(maps.refined_cam, alone.refined_cam, atol=1e-4)
    assert 0.5 < max(maps.cam.max(initial=0) for maps in together) <= 1


def test_maps_of_several_scales_are_averaged_on_the_finest_grid(clip: FrozenClip):
    image, text = draw_scene(1).image, handmade_embeddings(clip, TOY)
    height, width = patch_grid(clip, *image.shape[:2])

    def found(*scales: float) -> ClassMaps:
        return map_classes(clip, [image], [[1, 5]], *text, box_threshold=0.4, num_sinkhorn=1, scales=scales)[0]

    assert found(0.5).cam.shape == (2, height // 2, width // 2)
    several, singles = found(1.5, 0.5, 1.0), [found(scale) for scale in (0.5, 1.0, 1.5)]
    for name in ("cam", "refined_cam"):
        maps = [torch.from_numpy(getattr(single, name))[None] for single in singles]
        size = (height * 3 // 2, width * 3 // 2)
        mean = sum(functional.interpolate(own, size, mode="bilinear", align_corners=False)[0] for own in maps) / 3
        assert isinstance(mean, torch.Tensor)
        low, high = mean.amin(dim=(1, 2), keepdim=True), mean.amax(dim=(1, 2), keepdim=True)
        np.testing.assert_allclose(getattr(several, name), (mean - low) / (high - low), atol=1e-5)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    size = (2 * height * clip.patch_size, 2 * width * clip.patch_size)
    larger = functional.interpolate(pixels / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
    expected = (larger[0] - torch.tensor(clip.image_mean)[:, None, None]) / torch.tensor(clip.image_std)[:, None, None]
    torch.testing.assert_close(clip.preprocess(pixels, 2.0)[0], expected, rtol=0, atol=1e-5)


def test_clip_sees_no_longer_side_than_it_is_told(clip: FrozenClip):
    image, text = np.tile(draw_scene(1).image, (3, 2, 1)), handmade_embeddings(clip, TOY)
    height, width = patch_grid(clip, *image.shape[:2])
    assert height > width

    def found(scales: tuple[float, ...], max_side_px: int | None) -> ClassMaps:
        return map_classes(clip, [image], [[1, 5]], *text, 0.4, 1, scales, max_side_px=max_side_px)[0]

    bound_px = clip.patch_size * height // 2
    for scales in ((1.0,), (0.5, 1.0)):
        bounded = found(scales, bound_px)
        assert bounded.cam.shape == (2, height // 2, width // 2)
        smaller = found(tuple(scale / 2 for scale in scales), None)
        np.testing.assert_array_equal(bounded.cam, smaller.cam)
    np.testing.assert_array_equal(found((1.0,), clip.patch_size * height).cam, found((1.0,), None).cam)


def test_fewer_images_go_together_the_more_patches_they_have(clip: FrozenClip):
    grids = [(10, 10), (45, 45), (150, 200)]
    assert [images_at_once(clip, grid, (1.0,), None, 8) for grid in grids][::2] == [8, 1]
    assert [images_at_once(clip, grid, (1.0,), 160, 8) for grid in grids] == [8, 8, 8]
    assert images_at_once(clip, (45, 45), (2.0,), None, 8) < images_at_once(clip, (45, 45), (1.0,), None, 8) < 8


def test_attention_in_pieces_is_attention(clip: FrozenClip, monkeypatch: pytest.MonkeyPatch):
    image, text = draw_scene(1).image, handmade_embeddings(clip, TOY)
    whole, in_pieces = [], []
    for at_once, kept in ((1 << 26, whole), (1000, in_pieces)):
        monkeypatch.setattr("fmwsss.core.clip.last_block.ATTENTION_AT_ONCE", at_once)
        (found,) = map_classes(clip, [image], [[1, 5, 7]], *text, box_threshold=0.4, num_sinkhorn=1)
        features = clip.encode_image(clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None]), 8)
        assert features.attention is not None
        kept += [found.cam, found.refined_cam, features.attention.numpy(), features.last_block_input.numpy()]
    for one, other in zip(whole, in_pieces, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)


def test_other_grids_are_refused(clip: FrozenClip):
    patch = clip.patch_size
    assert patch_grid(clip, 2 * patch, 2 * patch + 1) == (2, 3)
    images = [np.zeros((side, 2 * patch, 3), np.uint8) for side in (2 * patch, 2 * patch + 1)]
    with pytest.raises(ValueError, match="one patch grid"):
        map_classes(clip, images, [[1], [1]], *handmade_embeddings(clip, TOY), box_threshold=None, num_sinkhorn=0)


@pytest.mark.parametrize("box_on", ["map", "result"])
@pytest.mark.parametrize("affinity_map", ["normalised", "raw"])
def test_affinity_spreads_what_it_is_told_to(clip: FrozenClip, box_on: BoxOn, affinity_map: AffinityMap):
    """M2.2, from the parts: attention, raw maps, boxes of the normalised ones; the refined map is normalised again."""
    image, (foreground, background) = draw_scene(1).image, handmade_embeddings(clip, TOY)
    options: dict[str, Any] = {"box_on": box_on, "affinity_map": affinity_map}
    (found,) = map_classes(clip, [image], [[1, 5]], foreground, background, 0.4, 1, num_attention_blocks=2, **options)
    features = clip.encode_image(clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None]), 2)
    present = torch.zeros(1, len(TOY.classes), dtype=torch.bool)
    present[0, [0, 4]] = True
    block = clip.last_block(features.last_block_input)
    raw = softmax_gradcam(block, clip.logit_scale, foreground, background, present).cam
    assert features.attention is not None
    boxed = maps_reference.normalise(raw).double().numpy()
    spread = raw.detach().double().numpy() if affinity_map == "raw" else boxed
    attention = features.attention[0].double().numpy()
    w = attention / attention.sum(0, keepdims=True)
    w = w / w.sum(1, keepdims=True)
    square = np.linalg.matrix_power((w + w.T) / 2, 2)
    for maps, own, refined in zip(
        boxed, spread, found.refined_cam if found.refined_cam is not None else [], strict=True
    ):
        mask = affinity_reference.box_mask(maps.reshape(features.grid), 0.4).ravel()
        result = square @ (mask * own) if box_on == "map" else mask * (square @ own)
        result = np.maximum(result, 0)
        result = (result - result.min()) / (result - result.min()).max()
        np.testing.assert_allclose(refined.ravel(), result, atol=1e-4)


def test_what_clip_says_of_patches_goes_with_the_maps_at_scale_one(clip: FrozenClip):
    image, text = draw_scene(2).image, handmade_embeddings(clip, TOY)
    pixels = clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    visual: Any = clip.model.visual
    with torch.no_grad():
        patches = visual.conv1(pixels)[0].permute(1, 2, 0)
    features = clip.encode_image(pixels)
    tokens = features.last_block_input[0, 1:].reshape(*features.grid, -1)
    expected: dict[Any, torch.Tensor] = {"patches": patches, "tokens": tokens, "both": torch.cat([patches, tokens], 2)}
    for (looks, own), scales, flip in zip(
        expected.items(), ((1.0,), (0.5, 1.0), (2.0,)), (False, True, False), strict=True
    ):
        settings: dict[str, Any] = {"box_threshold": None, "num_sinkhorn": 1, "scales": scales, "flip": flip}
        (found,) = map_classes(clip, [image], [[1, 5]], *text, **settings, num_attention_blocks=0, looks=looks)
        assert found.looks is not None
        np.testing.assert_allclose(found.looks, own.numpy(), atol=1e-4)
        (plain,) = map_classes(clip, [image], [[1, 5]], *text, **settings, num_attention_blocks=0)
        assert plain.looks is None
        np.testing.assert_array_equal(plain.cam, found.cam)
