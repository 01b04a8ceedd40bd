"""The layers of an image as pictures: each lies over the photograph, transparent where it has nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.labels import IGNORE, PALETTE
from fmwsss.core.overlays import with_labels, with_map
from fmwsss.core.resize import upsample
from fmwsss.core.schemas import maps_from_bytes, superpixels_from_row
from fmwsss.core.superpixels.masks import Superpixels

THUMBNAIL_PX = 320  # the long side
LARGEST_PX = 4096  # the long side of a photograph on its page
LEVELS = {"whole": 2, "part": 1, "subpart": 0}
IGNORED_ALPHA = 110


def labels_png(labels: UInt8[np.ndarray, "height width"]) -> bytes:
    """Class colours; the background is transparent, 255 half."""
    picture = Image.fromarray(labels)
    picture.putpalette(PALETTE.tobytes())
    alpha = np.full(256, 255, np.uint8)
    alpha[0], alpha[IGNORE] = 0, IGNORED_ALPHA
    return encoded(picture, "PNG", transparency=alpha.tobytes())


def map_png(maps: Float[np.ndarray, "present grid_height grid_width"], height_px: int, width_px: int) -> bytes:
    """The largest of the class maps as heat.

    Args:
        maps: values 0 to 1.
        height_px: of the image.
        width_px: of the image.
    """
    heat = upsample(maps, height_px, width_px).max(axis=0).clip(0, 1) if len(maps) else np.zeros((height_px, width_px))
    colour = np.stack([np.clip(heat * 3 - i, 0, 1) for i in (0.4, 1.2, 2.2)] + [heat], axis=2) * 255
    return encoded(Image.fromarray(colour.astype(np.uint8), "RGBA"), "PNG")


def superpixels_png(superpixels: Superpixels, level: int) -> bytes:
    """The superpixels of one level in colours of their own with a light line around, larger ones below.

    Args:
        superpixels: of the image.
        level: 0 sub-part, 1 part, 2 whole.
    """
    chosen = [index for index in range(len(superpixels)) if superpixels.level[index] == level]
    colours = np.zeros((superpixels.height_px, superpixels.width_px, 4), np.uint8)
    area = superpixels.area_px()
    for order, index in enumerate(sorted(chosen, key=lambda index: -int(area[index]))):
        mask = superpixels.mask(index)
        colours[mask] = (*PALETTE[1 + (order * 7) % 200], 255)
        colours[_outline(mask)] = (245, 245, 245, 255)
    return encoded(Image.fromarray(colours, "RGBA"), "PNG")


def mask_png(mask: Bool[np.ndarray, "height width"]) -> bytes:
    """One superpixel: light inside, a line around it."""
    colours = np.zeros((*mask.shape, 4), np.uint8)
    colours[mask] = (255, 255, 255, 90)
    colours[_outline(mask)] = (255, 40, 160, 255)
    return encoded(Image.fromarray(colours, "RGBA"), "PNG")


def doubt_png(confidence: bytes) -> bytes:
    """Red where the seed is unsure, from its grey PNG of confidences."""
    grey = np.asarray(Image.open(BytesIO(confidence)).convert("L"))
    colours = np.zeros((*grey.shape, 4), np.uint8)
    colours[..., 0], colours[..., 3] = 255, 255 - grey
    return encoded(Image.fromarray(colours, "RGBA"), "PNG")


def photograph(data: bytes) -> bytes:
    """The image upright, as a WebP of at most LARGEST_PX; what a file holds beside its pixels stays behind."""
    picture = Image.fromarray(decode_rgb(data, max_pixels=UNLIMITED))
    picture.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    return encoded(picture, "WEBP", quality=90)


def thumbnail(data: bytes, paint: Callable[[np.ndarray], np.ndarray] | None) -> bytes:
    """A small WebP of an image with something painted over it.

    Args:
        data: the encoded image.
        paint: from RGB to RGB of the same size; None for the image alone.
    """
    pixels = decode_rgb(data, max_pixels=UNLIMITED)
    picture = Image.fromarray(paint(pixels) if paint else pixels)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return encoded(picture, "WEBP", quality=80)


def painted(labels: UInt8[np.ndarray, "height width"]) -> Callable[[np.ndarray], np.ndarray]:
    """For `thumbnail`: class colours over the photograph."""
    return lambda pixels: with_labels(pixels, labels)


def heated(row: Mapping[str, Any], column: str) -> Callable[[np.ndarray], np.ndarray]:
    """For `thumbnail`: class maps over the photograph.

    Args:
        row: of SEEDS.
        column: of its maps.
    """
    return lambda pixels: with_map(pixels, maps_of(row, column))


def maps_of(row: Mapping[str, Any], column: str) -> Float[np.ndarray, "present grid_height grid_width"]:
    """The class maps of an image.

    Args:
        row: of SEEDS or MAPS.
        column: of its maps.
    """
    return maps_from_bytes(row[column], len(row["classes"]), row["grid_height"], row["grid_width"])


def labels_of(data: bytes) -> UInt8[np.ndarray, "height width"]:
    """The class indices of a label PNG."""
    return decode_label_png(data)


def superpixels_of(row: Mapping[str, Any]) -> Superpixels:
    """The superpixels of a row of SUPERPIXELS."""
    return superpixels_from_row(row)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file.

    Args:
        picture: of any mode that the format has.
        kind: the format, as Pillow calls it.
        options: of the format.
    """
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _outline(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner
