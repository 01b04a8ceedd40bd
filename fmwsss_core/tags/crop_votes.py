"""Which classes an image shows, by votes of crops: ours, for nothing is published of arXiv 2403.09307 (M8.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.tags.tower import embed_seen

CROPS_PER_SIDE = (2, 3)
CROP_SIDE_PX = 224
NUM_VOTES = 2


def crop_boxes(height_px: int, width_px: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of k x k crops that overlap by half, for each k of CROPS_PER_SIDE.

    Args:
        height_px: of the image.
        width_px: of the image.
    """
    for count in CROPS_PER_SIDE:
        # k sides that overlap by half are (k + 1) / 2 sides long.
        sides = [max(1, round(2 * length / (count + 1))) for length in (height_px, width_px)]
        for row in range(count):
            for column in range(count):
                top, left = (
                    round(place * (length - side) / (count - 1))
                    for place, length, side in ((row, height_px, sides[0]), (column, width_px, sides[1]))
                )
                yield slice(top, top + sides[0]), slice(left, left + sides[1])


@torch.no_grad()
def vote(
    clip: FrozenClip,
    image: UInt8[np.ndarray, "height width 3"],
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
) -> Float[np.ndarray, "classes"]:
    """How surely an image shows each class: what the whole image says of its best text, or the second of its crops.

    Each picture has a softmax over all texts and votes for its best one. A class has the greater of what the whole
    image gives it and the second highest that a crop gives it, of those that vote for it.

    Args:
        clip: the frozen CLIP, whose class token is asked.
        image: RGB.
        foreground: text embeddings of the classes.
        background: text embeddings of the surroundings, which are rivals.

    Returns:
        Scores from 0 to 1.
    """
    side = max(1, round(CROP_SIDE_PX / clip.patch_size)) * clip.patch_size
    whole = torch.from_numpy(image).to(clip.device).permute(2, 0, 1)[None]
    pictures = [whole, *(whole[:, :, rows, columns] for rows, columns in crop_boxes(*image.shape[:2]))]
    resized = [
        functional.interpolate(own.float(), size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)
        for own in pictures
    ]
    pixels = torch.cat([clip.preprocess(own.round().to(torch.uint8)) for own in resized])
    seen = torch.ones(len(pixels), (side // clip.patch_size) ** 2, dtype=torch.bool, device=clip.device)
    texts = torch.cat([foreground, background])
    said = torch.softmax(clip.logit_scale * embed_seen(clip, pixels, seen) @ texts.T, dim=1).float().cpu().numpy()
    votes = np.where(said == said.max(axis=1, keepdims=True), said, 0)[:, : len(foreground)]
    crops = np.sort(votes[1:], axis=0)
    return np.maximum(votes[0], crops[-NUM_VOTES])
