"""A backbone of a Mask2Former out of a frozen CLIP: for who has no other pretrained weights, or little time to train.

What a region shows comes from CLIP's patch tokens, where it ends from a few convolutions that are trained.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.segmenter.base import PIXEL_MEAN, PIXEL_STD

STEM_WIDTH = 32


def map_strides(patch_px: int) -> list[int]:
    """Of the four maps: the coarsest is not much coarser than the patches, for it mixes what CLIP tells apart.

    Measured with patches of 8 pixels only.
    """
    return [4, 8, 8, 16] if patch_px <= 8 else [4, 8, 16, 32]


class ClipBackbone(nn.Module):
    """Four maps at the strides of `map_strides`: CLIP's patch tokens, projected, plus the features of a stem.

    The tokens are those after a quarter of the blocks, after half of them (rounded down; of one or two blocks neither)
    and before the last one, and their local embedding. What the last block makes of them with its own queries is left
    out: there a patch carries what the whole image shows, and a small thing gets the name of its neighbour.

    Args:
        clip: frozen; stays in evaluation mode.
        width: channels of each map.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, clip: FrozenClip, width: int) -> None:
        super().__init__()
        self.clip = clip
        strides = map_strides(clip.patch_size)
        self.channels = [width] * len(strides)
        self.first, second = _convolution(3, STEM_WIDTH), _convolution(STEM_WIDTH, width)
        self.stem = nn.ModuleList([second])
        for finer, coarser in pairwise(strides):
            self.stem.append(_Residual(width) if coarser == finer else _convolution(width, width))
        visual: Any = clip.model.visual
        depth = len(visual.transformer.resblocks)
        self.blocks_kept = sorted({index for index in (depth // 4 - 1, depth // 2 - 1) if 0 <= index < depth - 2})
        token_width = (len(self.blocks_kept) + 1) * clip.image_width + clip.embed_dim
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(token_width, width, 1), nn.GroupNorm(8, width)) for _ in strides
        )
        mean, std = torch.tensor(clip.image_mean) * 255, torch.tensor(clip.image_std) * 255
        own_mean, own_std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        # From pixels as every segmenter here gets them to pixels as this CLIP wants them.
        self.register_buffer("scale", (own_std / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((own_mean - mean) / std).view(3, 1, 1), persistent=False)

    def forward(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> SimpleNamespace:
        """`feature_maps`, finest first, as backbones of `transformers` give them."""
        tokens = self._tokens(pixel_values * self.scale + self.shift)
        features, maps = self.first(pixel_values), []
        for stem, project in zip(self.stem, self.project, strict=True):
            features = stem(features)
            seen = project(tokens).float()  # on a CPU bfloat16 has no antialias
            features = features + functional.interpolate(seen, features.shape[-2:], mode="bilinear", antialias=True)
            maps.append(features)
        return SimpleNamespace(feature_maps=maps)

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        patch = self.clip.patch_size
        size = [-(-side // patch) * patch for side in pixels.shape[-2:]]
        if size != list(pixels.shape[-2:]):
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            features = self.clip.encode_image(pixels, blocks_kept=self.blocks_kept)
            tokens = [each[:, 1:] for each in (*features.block_outputs, features.last_block_input)]
            tokens.append(self.clip.local_embedding(features.last_block_input))
            normed = torch.cat([functional.layer_norm(each.float(), each.shape[-1:]) for each in tokens], dim=2)
        return normed.transpose(1, 2).unflatten(2, features.grid)


class _Residual(nn.Module):
    """A convolution at the grid's own size, added to what it sees."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = _layers(width, width, stride=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


def _convolution(width_in: int, width_out: int) -> nn.Module:
    """Halves the grid."""
    return _layers(width_in, width_out, stride=2)


def _layers(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, width_out), nn.ReLU())
