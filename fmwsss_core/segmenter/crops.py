"""A training crop of an image, its labels and their weights, drawn from one generator (method M7)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from fmwsss.core.labels import IGNORE
from fmwsss.core.segmenter.base import PIXEL_MEAN
from fmwsss.core.segmenter.crop_settings import CropSettings

Crop: TypeAlias = tuple[UInt8[Tensor, "3 crop crop"], UInt8[Tensor, "crop crop"], Float[Tensor, "crop crop"] | None]
MAX_ASPECT = 4  # of 2048 x 512: a panorama is scaled by its long side
NUM_TRIES = 10
MAX_SHIFT = 0.4
FLIP_PROBABILITY = DISTORTION_PROBABILITY = 0.5


def draw_crop(
    image: UInt8[np.ndarray, "height width 3"],
    labels: UInt8[np.ndarray, "height width"],
    weights: UInt8[np.ndarray, "height width"] | None,
    generator: np.random.Generator,
    settings: CropSettings,
) -> Crop:
    """One random crop: its pixels, labels and weights.

    Args:
        image: RGB.
        labels: class indices, 255 where unknown.
        weights: of the labels, 255 = 1; or None.
        generator: everything random comes from here, so that a crop is a function of the image and the epoch alone.
        settings: see there.
    """
    height, width = image.shape[:2]
    size = scaled_size(height, width, settings.short_side_px * generator.uniform(*settings.scale_range))
    pixels = transforms.resize(_planes(image), size, InterpolationMode.BILINEAR, antialias=True)
    maps = [_planes(labels[..., None])] + ([_planes(weights[..., None])] if weights is not None else [])
    target, *more = (transforms.resize(plane, size, InterpolationMode.NEAREST_EXACT) for plane in maps)
    side = settings.crop_px
    for _ in range(NUM_TRIES):
        top = int(generator.integers(0, max(0, size[0] - side), endpoint=True))
        left = int(generator.integers(0, max(0, size[1] - side), endpoint=True))
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        counts = torch.bincount(target[window].flatten().long(), minlength=256)[:IGNORE]
        is_mixed = counts.count_nonzero() > 1 and counts.max() < settings.category_cap * counts.sum()
        if is_mixed or settings.category_cap >= 1:
            break
    pixels, target = pixels[window], target[window]
    if settings.distort:
        pixels = _distorted(pixels, generator)
    padded = torch.tensor(PIXEL_MEAN).round().to(torch.uint8)[:, None, None].repeat(1, side, side)
    padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    planes = [padded, _padded(target, side, IGNORE)] + [_padded(plane[window], side, 0) for plane in more]
    if settings.flip and generator.random() < FLIP_PROBABILITY:
        planes = [plane.flip(-1) for plane in planes]
    weight = planes[2][0].float() / 255 if more else None
    return planes[0].contiguous(), planes[1][0].contiguous(), weight


def paste_class(crop: Crop, giver: Crop, generator: np.random.Generator) -> Crop:
    """One class of another crop laid over this one, mirrored or not, moved by up to MAX_SHIFT of the side.

    Copy-paste (arXiv 2012.07177) with what a seed has in place of instances. Things come into scenes that they were
    never seen in, so that what a thing is called has to come from the thing.

    Args:
        crop: stays as it is if the other one shows no class but the background.
        giver: of the same size.
        generator: everything random comes from here.
    """
    classes = [index for index in giver[1].unique().tolist() if index not in (0, IGNORE)]
    if not classes:
        return crop
    chosen, is_mirrored = classes[int(generator.integers(len(classes)))], generator.random() < FLIP_PROBABILITY
    side = giver[1].shape[0]
    down, right = generator.integers(-int(MAX_SHIFT * side), int(MAX_SHIFT * side), size=2, endpoint=True).tolist()
    to, come = ((slice(max(0, by), side + min(0, by)) for by in (sign * down, sign * right)) for sign in (1, -1))
    to, come = (..., *to), (..., *come)

    def laid(below: Tensor, above: Tensor) -> Tensor:
        above = above.flip(-1) if is_mirrored else above
        below = below.clone()
        below[to] = torch.where(here, above[come], below[to])
        return below

    here = (giver[1].flip(-1) if is_mirrored else giver[1])[come] == chosen
    weights = laid(crop[2], giver[2]) if crop[2] is not None and giver[2] is not None else None
    return laid(crop[0], giver[0]), laid(crop[1], giver[1]), weights


def scaled_size(height: int, width: int, short_side_px: float) -> list[int]:
    """Height and width with this short side, unless the long side would then be over MAX_ASPECT times as long.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        short_side_px: that is wanted.

    Returns:
        Height and width in pixels, each at least 1.
    """
    scale = min(short_side_px / min(height, width), MAX_ASPECT * short_side_px / max(height, width))
    return [max(1, round(height * scale)), max(1, round(width * scale))]


def _planes(values: UInt8[np.ndarray, "height width channels"]) -> UInt8[Tensor, "channels height width"]:
    return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)


def _padded(plane: UInt8[Tensor, "1 height width"], side: int, value: int) -> UInt8[Tensor, "1 {side} {side}"]:
    padded = torch.full((1, side, side), value, dtype=torch.uint8)
    padded[:, : plane.shape[1], : plane.shape[2]] = plane
    return padded


def _distorted(
    pixels: UInt8[Tensor, "3 height width"], generator: np.random.Generator
) -> UInt8[Tensor, "3 height width"]:
    """Brightness +-32, contrast .5-1.5, saturation .5-1.5, hue +-18 of 180; each in half of the crops."""
    applies = generator.random(4) < DISTORTION_PROBABILITY
    brightness, hue = generator.uniform(-32, 32), generator.uniform(-0.1, 0.1)
    contrast, saturation = generator.uniform(0.5, 1.5, size=2)
    if applies[0] or applies[1]:
        changed = pixels.float() + (brightness if applies[0] else 0)
        pixels = (changed * (contrast if applies[1] else 1)).round().clamp(0, 255).to(torch.uint8)
    if applies[2]:
        pixels = transforms.adjust_saturation(pixels, saturation)
    if applies[3]:
        pixels = transforms.adjust_hue(pixels, hue)
    return pixels
