"""A training view of an image and its label map: jitter, scale, crop and flip from one generator (method M3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

JITTER_PROBABILITY = 0.5
FLIP_PROBABILITY = 0.5

# `together`: all four colour changes or none; `authors`: each drawn by itself, and contrast as a factor of the pixels.
Jitter = Literal["together", "authors"]


@dataclass(frozen=True)
class View:
    """One random view, drawn before there is a picture: image and label map can be brought to it apart.

    Attributes:
        size_px: (height, width) that the whole picture is scaled to.
        top_px, left_px, crop_px: the square that is cut out.
        is_flipped: mirrored after that.
        jitter: brightness, contrast, saturation and hue, each None where it is left as it is; or None.
        is_contrast_a_factor: contrast multiplies the pixels (the authors), or their distance from the mean grey.
    """

    size_px: tuple[int, int]
    top_px: int
    left_px: int
    crop_px: int
    is_flipped: bool
    jitter: tuple[float | None, float | None, float | None, float | None] | None
    is_contrast_a_factor: bool = False

    def of_image(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "3 crop crop"]:
        """This view of an RGB image."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        pixels = transforms.resize(pixels, list(self.size_px), InterpolationMode.BILINEAR, antialias=True)
        pixels = transforms.crop(pixels, self.top_px, self.left_px, self.crop_px, self.crop_px)
        brightness, contrast, saturation, hue = self.jitter or (None, None, None, None)
        if brightness is not None:
            pixels = (pixels.float() + 255 * brightness).clamp(0, 255).to(torch.uint8)
        if contrast is not None and self.is_contrast_a_factor:
            pixels = (pixels.float() * contrast).clamp(0, 255).to(torch.uint8)
        elif contrast is not None:
            pixels = transforms.adjust_contrast(pixels, contrast)
        if saturation is not None:
            pixels = transforms.adjust_saturation(pixels, saturation)
        if hue is not None:
            pixels = transforms.adjust_hue(pixels, hue)
        return (transforms.horizontal_flip(pixels) if self.is_flipped else pixels).contiguous()

    def of_labels(self, labels: UInt8[np.ndarray, "height width"]) -> UInt8[Tensor, "crop crop"]:
        """This view of a label map: class indices, 255 where unknown."""
        target = torch.from_numpy(np.ascontiguousarray(labels))[None]
        target = transforms.resize(target, list(self.size_px), InterpolationMode.NEAREST_EXACT)
        target = transforms.crop(target, self.top_px, self.left_px, self.crop_px, self.crop_px)
        return (transforms.horizontal_flip(target) if self.is_flipped else target)[0].contiguous()


def draw_view(
    height_px: int,
    width_px: int,
    generator: np.random.Generator,
    *,
    long_side_px: tuple[int, int],
    crop_px: int,
    jitter: bool | Jitter,
    flip: bool,
) -> View:
    """One random view of a picture of this size (the authors' augmentation but for the colours; method M3).

    Args:
        height_px, width_px: of the picture.
        generator: everything random comes from here, so that a view is a function of the image and the epoch alone.
        long_side_px: least and greatest length of the longer side; more where the shorter would not hold the crop.
        crop_px: side of the square that is cut out.
        jitter: colours. `together` or True: all four change, in half of the views. `authors`: each changes in half of
            the views by itself, in their order, contrast as a factor of the pixels. False: none changes.
        flip: whether half of the views are mirrored.
    """
    long_side = generator.integers(long_side_px[0], long_side_px[1], endpoint=True)
    scale = max(long_side / max(height_px, width_px), crop_px / min(height_px, width_px))
    size = max(crop_px, round(height_px * scale)), max(crop_px, round(width_px * scale))
    top = int(generator.integers(0, size[0] - crop_px, endpoint=True))
    left = int(generator.integers(0, size[1] - crop_px, endpoint=True))
    is_flipped = flip and bool(generator.random() < FLIP_PROBABILITY)
    is_jittered = bool(jitter) and bool(generator.random() < JITTER_PROBABILITY)
    brightness, hue = generator.uniform(-25 / 255, 25 / 255, size=2)
    contrast, saturation = generator.uniform(0.6, 1.4), generator.uniform(0.5, 1.5)
    colours = (float(brightness), float(contrast), float(saturation), float(hue))
    if jitter == "authors":
        is_drawn = generator.random(size=4) < JITTER_PROBABILITY
        brightness, contrast, saturation, hue = (
            value if drawn else None for value, drawn in zip(colours, is_drawn, strict=True)
        )
        each = (brightness, contrast, saturation, hue)
        return View(size, top, left, crop_px, is_flipped, each, is_contrast_a_factor=True)
    return View(size, top, left, crop_px, is_flipped, colours if is_jittered else None)
