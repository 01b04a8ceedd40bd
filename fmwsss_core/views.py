"""A training view of an image and its label map: jitter, scale, crop and flip from one generator (method M3)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

JITTER_PROBABILITY = 0.5
FLIP_PROBABILITY = 0.5


def view(
    image: UInt8[np.ndarray, "height width 3"],
    labels: UInt8[np.ndarray, "height width"] | None,
    generator: np.random.Generator,
    *,
    long_side_px: tuple[int, int],
    crop_px: int,
    jitter: bool,
    flip: bool,
) -> tuple[UInt8[Tensor, "3 crop crop"], UInt8[Tensor, "crop crop"] | None]:
    """One random view of an image, and of its label map with it (the authors' augmentation, method M3).

    Args:
        image: RGB.
        labels: class indices, 255 where unknown; None where there is no label map.
        generator: everything random comes from here, so that a view is a function of the image and the epoch alone.
        long_side_px: least and greatest length of the longer side; more where the shorter would not hold the crop.
        crop_px: side of the square that is cut out.
        jitter: whether colours change in half of the views.
        flip: whether half of the views are mirrored.
    """
    height_px, width_px = image.shape[:2]
    long_side = generator.integers(long_side_px[0], long_side_px[1], endpoint=True)
    scale = max(long_side / max(height_px, width_px), crop_px / min(height_px, width_px))
    size = [max(crop_px, round(height_px * scale)), max(crop_px, round(width_px * scale))]
    top = int(generator.integers(0, size[0] - crop_px, endpoint=True))
    left = int(generator.integers(0, size[1] - crop_px, endpoint=True))
    is_flipped = flip and generator.random() < FLIP_PROBABILITY
    is_jittered = jitter and generator.random() < JITTER_PROBABILITY
    brightness, hue = generator.uniform(-25 / 255, 25 / 255, size=2)
    contrast, saturation = generator.uniform(0.6, 1.4), generator.uniform(0.5, 1.5)

    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    pixels = transforms.resize(pixels, size, InterpolationMode.BILINEAR, antialias=True)
    pixels = transforms.crop(pixels, top, left, crop_px, crop_px)
    if is_jittered:
        pixels = (pixels.float() + 255 * brightness).clamp(0, 255).to(torch.uint8)
        pixels = transforms.adjust_contrast(pixels, contrast)
        pixels = transforms.adjust_saturation(pixels, saturation)
        pixels = transforms.adjust_hue(pixels, hue)
    target = None
    if labels is not None:
        target = torch.from_numpy(np.ascontiguousarray(labels))[None]
        target = transforms.resize(target, size, InterpolationMode.NEAREST_EXACT)
        target = transforms.crop(target, top, left, crop_px, crop_px)[0]
    if is_flipped:
        pixels = transforms.horizontal_flip(pixels)
        target = transforms.horizontal_flip(target[None])[0] if target is not None else None
    return pixels.contiguous(), target.contiguous() if target is not None else None
