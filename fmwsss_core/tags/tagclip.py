"""Which classes an image shows, told by a frozen CLIP from its patches: TagCLIP (method M8.2, after its program)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from fmwsss.core.class_maps.attention_affinity import box_mask
from fmwsss.core.class_maps.clip_maps import bound_of, patch_grid
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.tags.tower import embed_seen, run_tower

# Of twelve blocks, those whose attention is averaged (9 to 11), and how many must find two patches alike.
FIRST_AVERAGED, LEAST_VOTES = 8 / 12, 4 / 12
CANDIDATE, INSIDE = 0.5, 0.5  # share of the range of all maps of an image; share of a map's own range
CROP_SIDE_PX = 224
CROP_WEIGHT = 0.5


@torch.no_grad()
def tag_scores(
    clip: FrozenClip,
    image: UInt8[np.ndarray, "height width 3"],
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
    max_side_px: int | None = None,
) -> Float[np.ndarray, "classes"]:
    """How surely an image shows each class.

    Each patch, which attends to itself alone in the last block, has a softmax over all texts; these are spread along
    the attention of late blocks; a class has the highest value of its map, and where that is high, the mean of it and
    of what the class token says of the class's part of the image.

    Args:
        clip: the frozen CLIP.
        image: RGB.
        foreground: text embeddings of the classes.
        background: text embeddings of the surroundings, which are rivals.
        max_side_px: a longer image is made smaller first; None: as it is.

    Returns:
        Scores from 0 to 1.
    """
    bound = bound_of(clip, patch_grid(clip, *image.shape[:2]), max_side_px)
    pixels = clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None].to(clip.device), bound)
    grid = (pixels.shape[2] // clip.patch_size, pixels.shape[3] // clip.patch_size)
    texts = torch.cat([foreground, background])
    tower = run_tower(clip, pixels)
    coarse = torch.softmax(clip.logit_scale * tower.alone @ texts.T, dim=1)
    maps = refined_maps(coarse, kept_attention(tower.attention), grid)
    return add_crops(clip, pixels, maps, grid, texts, len(foreground)).float().cpu().numpy()


def kept_attention(attention: Float[Tensor, "blocks tokens tokens"]) -> Float[Tensor, "tokens tokens"]:
    """Mean attention of late blocks, the last left out, between patches that enough blocks find alike.

    Args:
        attention: of each block; a block finds two patches alike whose weight exceeds the mean of its weights.
    """
    num_blocks = len(attention)
    first = min(round(FIRST_AVERAGED * num_blocks), num_blocks - 2)
    votes = (attention > attention.mean(dim=(1, 2), keepdim=True)).sum(dim=0)
    least = max(1, round(LEAST_VOTES * num_blocks))
    return attention[max(first, 0) : max(num_blocks - 1, 1)].mean(dim=0) * (votes >= least)


def refined_maps(
    coarse: Float[Tensor, "tokens texts"], affinity: Float[Tensor, "tokens tokens"], grid: tuple[int, int]
) -> Float[Tensor, "tokens texts"]:
    """Maps spread along the attention: first from everywhere, then from the boxes of what the first show.

    Args:
        coarse: probabilities of each patch.
        affinity: of `kept_attention`.
        grid: rows and columns of patches.

    Returns:
        For each text, `affinity` times what `coarse` has inside of the bounding boxes of the regions where the first
        map, from 0 to 1, exceeds its mean.
    """
    first = affinity @ coarse
    inside = torch.stack([torch.from_numpy(_boxes(own, grid)) for own in first.T]).to(coarse)
    return affinity @ (coarse * inside.T)


def _boxes(own: Float[Tensor, "tokens"], grid: tuple[int, int]) -> Bool[np.ndarray, "tokens"]:
    scaled = _scaled(own).float().cpu().numpy()
    return box_mask(scaled.reshape(grid), float(scaled.mean())).ravel()


def _scaled(own: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    above = own - own.min()
    return above / above.max().clamp(min=torch.finfo(own.dtype).tiny)


def add_crops(
    clip: FrozenClip,
    pixels: Float[Tensor, "1 3 height width"],
    maps: Float[Tensor, "tokens texts"],
    grid: tuple[int, int],
    texts: Float[Tensor, "texts embed"],
    num_classes: int,
) -> Float[Tensor, "classes"]:
    """Highest value of each class's map; of a candidate, its mean with what the class token says of the class's box.

    A candidate's value is in the upper half of the range of all maps. Its crop is the box of the upper half of its own
    map; the class token sees the patches of that half alone.

    Args:
        clip: the frozen CLIP.
        pixels: of the image, as `FrozenClip.preprocess` gives them.
        maps: of `refined_maps`.
        grid: rows and columns of patches.
        texts: embeddings of classes, then of backgrounds.
        num_classes: how many of them are classes.

    Returns:
        Scores from 0 to 1.
    """
    scores = maps[:, :num_classes].amax(dim=0)
    threshold = maps.min() + CANDIDATE * (maps.max() - maps.min())
    patch = clip.patch_size
    side = round(CROP_SIDE_PX / patch)
    names, crops, seen = [], [], []
    for number in (scores > threshold).nonzero()[:, 0].tolist():
        inside = (_scaled(maps[:, number]) > INSIDE).reshape(grid)
        rows, columns = inside.any(dim=1).nonzero()[:, 0], inside.any(dim=0).nonzero()[:, 0]
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        crop = pixels[:, :, top * patch : bottom * patch, left * patch : right * patch]
        crops.append(functional.interpolate(crop, size=(side * patch,) * 2, mode="bilinear", align_corners=False))
        own = inside[None, None, top:bottom, left:right].float()
        seen.append(functional.interpolate(own, size=(side, side), mode="nearest").flatten() > 0)
        names.append(number)
    if names:
        embedded = embed_seen(clip, torch.cat(crops), torch.stack(seen))
        said = torch.softmax(clip.logit_scale * embedded @ texts.T, dim=1)
        for row, number in enumerate(names):
            scores[number] = (1 - CROP_WEIGHT) * scores[number] + CROP_WEIGHT * said[row, number]
    return scores
