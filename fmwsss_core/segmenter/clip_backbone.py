"""A backbone of a Mask2Former out of a frozen CLIP: for who has no other pretrained weights, or little time to train.

What a region shows comes from CLIP's patch tokens, where it ends from a few convolutions that are trained.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fmwsss_core.clip import FrozenClip
from fmwsss_core.segmenter.base import PIXEL_MEAN, PIXEL_STD

STEM_WIDTH = 32
STRIDES = (4, 8, 16, 32)


class ClipBackbone(nn.Module):
    """Four maps at strides 4 to 32: CLIP's patch tokens, projected, plus the features of a stem.

    The tokens are those before the last block, and those after it in the space of CLIP's embeddings, whose mean is
    what texts were compared with.

    Args:
        clip: frozen; stays in evaluation mode.
        width: channels of each map.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, clip: FrozenClip, width: int) -> None:
        super().__init__()
        self.clip = clip
        self.channels = [width] * len(STRIDES)
        self.first = _convolution(3, STEM_WIDTH)
        self.stem = nn.ModuleList(_convolution(width if i else STEM_WIDTH, width) for i in range(len(STRIDES)))
        visual: Any = clip.model.visual
        token_width = len(visual.class_embedding) + clip.embed_dim
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(token_width, width, 1), nn.GroupNorm(8, width)) for _ in STRIDES
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
            seen = functional.interpolate(project(tokens), features.shape[-2:], mode="bilinear", antialias=True)
            features = features + seen
            maps.append(features)
        return SimpleNamespace(feature_maps=maps)

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        patch = self.clip.patch_size
        size = [-(-side // patch) * patch for side in pixels.shape[-2:]]
        if size != list(pixels.shape[-2:]):
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        visual: Any = self.clip.model.visual
        with torch.no_grad():
            features = self.clip.encode_image(pixels)
            before = features.last_block_input
            after = visual.ln_post(visual.transformer.resblocks[-1](before)) @ visual.proj
            pair = [functional.layer_norm(each, each.shape[-1:])[:, 1:] for each in (before.float(), after.float())]
        tokens = torch.cat(pair, dim=2)
        return tokens.transpose(1, 2).unflatten(2, features.grid)


def _convolution(width_in: int, width_out: int) -> nn.Module:
    """Halves the grid."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, width_out), nn.ReLU()
    )
