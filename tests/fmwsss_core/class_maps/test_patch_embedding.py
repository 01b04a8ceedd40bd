"""Patches embedded by every kind of last block, against loops over heads, queries and keys."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from fmwsss.core.class_maps.patch_embedding import Attention, PatchEmbedding
from fmwsss.core.clip.frozen_clip import FrozenClip
from tests.references import patch_maps as reference
from tests.references.clip import random_clip

torch.set_num_threads(1)

SC_CLIP = PatchEmbedding(
    residual=False, mlp=False, mend_outliers=True, similarity_depth=0.75, smoothing_depth=1 / 3,
    summed_depths=(1 / 3, 5 / 6),
)  # fmt: skip
SETTINGS = [
    *(PatchEmbedding(attention=name) for name in get_args(Attention)),
    PatchEmbedding(attention="query-query", residual=False, mlp=False, class_token=False),
    PatchEmbedding(residual=False, class_token=False, neighbourhood_patches=5.0),
    PatchEmbedding(attention="query-query+key-key", mlp=False, neighbourhood_patches=0.7),
    PatchEmbedding(mend_outliers=True),
    PatchEmbedding(similarity_depth=0.75),
    PatchEmbedding(similarity_depth=0.75, attention="query-query+key-key", class_token=False),
    PatchEmbedding(smoothing_depth=0.33),
    PatchEmbedding(summed_depths=(0.2, 0.6)),
    SC_CLIP,
]


def _embedded(clip: FrozenClip, pixels: torch.Tensor, settings: PatchEmbedding) -> torch.Tensor:
    visual: Any = clip.model.visual
    blocks = sorted(settings.blocks_kept(len(visual.transformer.resblocks)))
    features = clip.encode_image(pixels, blocks_kept=blocks)
    return settings.embed(clip, features, dict(zip(blocks, features.block_outputs, strict=True)))


def _inputs_of_blocks(model: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What open_clip's own forward feeds each block."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for block in model.visual.transformer.resblocks
    ]
    with torch.no_grad():
        model.visual(pixels)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("layers", [1, 2, 6])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_against_loops_in_float64(settings: PatchEmbedding, layers: int):
    model = random_clip(layers=layers)
    clip = FrozenClip(model, "small")
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    pixels = clip.preprocess(images)
    found = _embedded(clip, pixels, settings)
    inputs = _inputs_of_blocks(model, pixels)
    for i in range(2):
        expected = reference.patch_embedding(model, [x[i] for x in inputs], (4, 4), settings)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-10)


def test_the_default_is_the_local_embedding():
    clip = FrozenClip(random_clip(), "small")
    images = torch.randint(0, 256, (2, 3, 24, 56), generator=torch.Generator().manual_seed(1)).byte()
    features = clip.encode_image(clip.preprocess(images))
    local = torch.nn.functional.normalize(clip.local_embedding(features.last_block_input), dim=-1)
    torch.testing.assert_close(PatchEmbedding().embed(clip, features, {}), local, rtol=0, atol=1e-12)


def test_every_part_changes_something():
    """A part that is switched on and does nothing would pass all comparisons."""
    clip = FrozenClip(random_clip(layers=6), "small")
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    found = [_embedded(clip, clip.preprocess(images), settings) for settings in SETTINGS]
    for i, first in enumerate(found):
        for j, second in enumerate(found[:i]):
            assert (first - second).abs().max() > 1e-6, (SETTINGS[i], SETTINGS[j])
