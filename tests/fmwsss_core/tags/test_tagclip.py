"""Tags of one image against loops over tokens and pairs of patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.tags import crop_votes, tagclip
from fmwsss.core.tags.tower import embed_seen
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY, draw_scene
from tests.references import tagclip as reference
from tests.references.clip import random_clip

NUM_CLASSES = 4


def texts_of(clip: FrozenClip, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, clip.embed_dim, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize(("seed", "layers"), [(0, 3), (1, 4), (2, 2)])
def test_scores_are_those_of_loops(monkeypatch: pytest.MonkeyPatch, seed: int, layers: int) -> None:
    clip = FrozenClip(random_clip(seed, layers), "random")
    # A crop of 28 x 28 patches would take loops an hour.
    monkeypatch.setattr(tagclip, "CROP_SIDE_PX", 4 * clip.patch_size)
    monkeypatch.setattr(reference, "round", lambda value: 4, raising=False)
    image = np.random.default_rng(seed).integers(0, 256, (30, 43, 3), np.uint8)
    texts = texts_of(clip, 6, seed)
    pixels = clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    first, least = {2: (0, 1), 3: (1, 1), 4: (2, 1)}[layers]
    expected = reference.scores(clip, pixels, texts, NUM_CLASSES, first, least)
    found = tagclip.tag_scores(clip, image, texts[:NUM_CLASSES], texts[NUM_CLASSES:])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_blocks_of_a_clip_of_twelve_are_those_of_the_program() -> None:
    attention = torch.rand(12, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    votes = sum((own > own.mean()).int() for own in attention)
    expected = (attention[8] + attention[9] + attention[10]) / 3 * (votes >= 4)
    torch.testing.assert_close(tagclip.kept_attention(attention), expected)


def test_a_class_token_that_sees_everything_is_that_of_the_clip() -> None:
    clip = FrozenClip(random_clip(3), "random")
    pixels = clip.preprocess(torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8))
    seen = torch.ones(2, 15, dtype=torch.bool)
    visual: Any = clip.model.visual
    x = torch.stack([reference.first_tokens(clip, own[None]) for own in pixels])
    for block in visual.transformer.resblocks:
        x = block(x)
    expected = functional.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=1)
    torch.testing.assert_close(embed_seen(clip, pixels, seen), expected)
    seen[1, :7] = False
    assert not torch.allclose(embed_seen(clip, pixels, seen)[1], expected[1])


def test_crops_vote_as_in_a_loop() -> None:
    clip = FrozenClip(toy_clip(), "toy")
    foreground, background = handmade_embeddings(clip, TOY)
    texts, num_classes = torch.cat([foreground, background]), len(TOY.classes)
    for seed in (5, 6):
        image = draw_scene(seed).image
        said = []
        for rows, columns in [(slice(None), slice(None)), *crop_votes.crop_boxes(*image.shape[:2])]:
            crop = torch.from_numpy(image[rows, columns].copy()).permute(2, 0, 1)[None]
            resized = functional.interpolate(crop.float(), size=(224, 224), mode="bicubic", antialias=True)
            pixels = clip.preprocess(resized.clamp(0, 255).round().to(torch.uint8))
            token = embed_seen(clip, pixels, torch.ones(1, 28 * 28, dtype=torch.bool))
            said.append(torch.softmax(clip.logit_scale * token @ texts.T, 1)[0].tolist())
        expected = []
        for name in range(num_classes):
            voters = [own[name] for own in said[1:] if max(own) == own[name]]
            second = sorted(voters)[-2] if len(voters) > 1 else 0.0
            expected.append(max(second, said[0][name] if max(said[0]) == said[0][name] else 0.0))
        np.testing.assert_allclose(crop_votes.vote(clip, image, foreground, background), expected, atol=1e-5)


def test_crops_cover_the_image_and_overlap_by_half() -> None:
    boxes = list(crop_votes.crop_boxes(120, 200))
    assert len(boxes) == 4 + 9
    covered = np.zeros((120, 200), int)
    for rows, columns in boxes[:4]:
        covered[rows, columns] += 1
    assert covered.min() == 1
    assert [(rows.start, rows.stop) for rows, _ in boxes[4::3]] == [(0, 60), (30, 90), (60, 120)]


def test_scenes_are_tagged() -> None:
    clip = FrozenClip(toy_clip(), "toy")
    texts = handmade_embeddings(clip, TOY)
    right = 0
    for seed in range(40, 48):
        scene = draw_scene(seed)
        best = int(np.argmax(tagclip.tag_scores(clip, scene.image, *texts)))
        right += TOY.classes[best] in scene.classes
    assert right >= 7
