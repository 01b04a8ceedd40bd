"""A frozen image tower run otherwise than it was trained: tokens that see themselves alone, or some patches alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.clip.last_block import after_attention, attend_with_mean, join_heads, split_heads


@dataclass(frozen=True)
class Tower:
    """What the image tower makes of one image.

    Attributes:
        alone: of each patch, in the space that images and texts share, where it attends to itself in the last block.
        attention: of each block, the mean over its heads, between patches; rows do not sum to 1, for the class token
            has its share too.
    """

    alone: Float[Tensor, "tokens embed"]
    attention: Float[Tensor, "blocks tokens tokens"]


@torch.no_grad()
def run_tower(clip: FrozenClip, pixels: Float[Tensor, "1 3 height width"]) -> Tower:
    """Runs the image tower with the last block's attention replaced by that of each token to itself.

    Args:
        clip: the frozen CLIP.
        pixels: of one image, as `FrozenClip.preprocess` gives them.
    """
    visual: Any = clip.model.visual
    *blocks, last = visual.transformer.resblocks
    x = _first_tokens(clip, pixels)
    attentions = []
    for block in blocks:
        query, key, value = split_heads(block.attn, block.ln_1(x))
        attended, mean = attend_with_mean(query, key, value)
        attentions.append(mean[0, 1:, 1:])
        x = after_attention(block, x, join_heads(attended))
    _, _, value = split_heads(last.attn, last.ln_1(x))
    alone = visual.ln_post(after_attention(last, x, join_heads(value))[0, 1:]) @ visual.proj
    attentions.append(torch.eye(len(alone)).to(alone))
    return Tower(functional.normalize(alone, dim=1), torch.stack(attentions))


@torch.no_grad()
def embed_seen(
    clip: FrozenClip, pixels: Float[Tensor, "batch 3 height width"], seen: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch embed"]:
    """The class token's embedding where it attends, in every block, to itself and to some patches alone.

    Args:
        clip: the frozen CLIP.
        pixels: as `FrozenClip.preprocess` gives them.
        seen: by the class token; patches attend to everything.

    Returns:
        Unit vectors.
    """
    visual: Any = clip.model.visual
    x = _first_tokens(clip, pixels)
    allowed = torch.ones(len(x), 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
    allowed[:, 0, 0, 1:] = seen
    for block in visual.transformer.resblocks:
        query, key, value = split_heads(block.attn, block.ln_1(x))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        x = after_attention(block, x, join_heads(attended))
    return functional.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=1)


def _first_tokens(clip: FrozenClip, pixels: Tensor) -> Float[Tensor, "batch all_tokens width"]:
    visual: Any = clip.model.visual
    patches = visual.conv1(pixels)
    grid = (int(patches.shape[2]), int(patches.shape[3]))
    class_token = visual.class_embedding.expand(len(patches), 1, -1)
    x = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
    return visual.ln_pre(x + clip.position_embedding(grid))
