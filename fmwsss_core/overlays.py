"""Small pictures for people: a photograph with its labels, its class map or its superpixels laid over it."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from fmwsss.core.labels import IGNORE, PALETTE
from fmwsss.core.resize import upsample
from fmwsss.core.superpixels.masks import Superpixels

LABEL_OPACITY = 0.62


def with_labels(
    image: UInt8[np.ndarray, "height width 3"], labels: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Class colours over the darkened photograph, with a light line around each region; 255 is left as it is.

    Args:
        image: RGB.
        labels: class indices; 0 is background, 255 is ignored.

    Returns:
        RGB of the same size.
    """
    painted = (labels != 0) & (labels != IGNORE)
    colours = PALETTE[labels].astype(np.float32)
    mixed = image * 0.55
    mixed[painted] = (1 - LABEL_OPACITY) * image[painted] + LABEL_OPACITY * colours[painted]
    mixed[_edges(labels)] = 245
    return mixed.astype(np.uint8)


def with_map(
    image: UInt8[np.ndarray, "height width 3"], maps: Float[np.ndarray, "present grid_height grid_width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The largest of the class maps as heat over the photograph in grey.

    Args:
        image: RGB.
        maps: values 0 to 1 on the patch grid, one map for each class; none leaves the grey photograph.

    Returns:
        RGB of the image's size.
    """
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.7
    if len(maps) == 0:
        return grey.astype(np.uint8)
    heat = upsample(maps, *image.shape[:2]).max(axis=0).clip(0, 1)[..., None]
    colour = np.concatenate([np.clip(heat * 3 - i, 0, 1) for i in (0.4, 1.2, 2.2)], axis=2) * 255
    return (grey * (1 - 0.75 * heat) + colour * 0.75 * heat).astype(np.uint8)


def with_doubt(
    image: UInt8[np.ndarray, "height width 3"], doubt: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Red over the photograph in grey where a seed is unsure.

    Args:
        image: RGB.
        doubt: 1 - confidence of each pixel.

    Returns:
        RGB of the same size.
    """
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.7
    share = doubt.clip(0, 1)[..., None] * 0.8
    return (grey * (1 - share) + np.array([255, 40, 40]) * share).astype(np.uint8)


def with_superpixels(
    image: UInt8[np.ndarray, "height width 3"], superpixels: Superpixels, level: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The superpixels of one level in colours of their own, larger ones below.

    Args:
        image: RGB.
        superpixels: of this image.
        level: 0 sub-part, 1 part, 2 whole.

    Returns:
        RGB of the same size.
    """
    mixed = image * 0.45
    chosen = [i for i in range(len(superpixels)) if superpixels.level[i] == level]
    masks = [superpixels.mask(i) for i in chosen]
    for order, mask in enumerate(sorted(masks, key=lambda mask: -int(mask.sum()))):
        mixed[mask] = 0.4 * image[mask] + 0.6 * PALETTE[1 + (order * 7) % 200]
        mixed[_edges(mask.astype(np.uint8))] = 245
    return mixed.astype(np.uint8)


def data_url(image: UInt8[np.ndarray, "height width 3"], width_px: int) -> str:
    """A picture scaled to a width, inside the page itself.

    Args:
        image: RGB.
        width_px: of the picture in the page; its height follows.

    Returns:
        A `data:` URL of a WebP.
    """
    height_px = max(1, round(image.shape[0] * width_px / image.shape[1]))
    buffer = io.BytesIO()
    Image.fromarray(image).resize((width_px, height_px), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _edges(labels: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    edges = np.zeros(labels.shape, bool)
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edges
