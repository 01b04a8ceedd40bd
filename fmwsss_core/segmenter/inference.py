"""Probabilities of whole images, at one scale or several, plain and mirrored (method M7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from fmwsss.core.segmenter.base import PIXEL_MEAN, Segmenter
from fmwsss.core.segmenter.crops import scaled_size

GRID_STRIDE = 4  # of the probabilities that are stored: the grid that Mask2Former and DeepLabV3+ decide on


@torch.no_grad()
def probabilities(
    segmenter: Segmenter,
    image: UInt8[np.ndarray, "height width 3"],
    short_side_px: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Float[Tensor, "classes height width"]:
    """The mean over scales (and mirror images) of what the network says, at the image's own size.

    Args:
        segmenter: in evaluation mode.
        image: RGB.
        short_side_px: length of the image's short side at scale 1.
        scales: at which the image goes through the network.
        flip: whether its mirror image goes too.
    """
    height, width = image.shape[:2]
    device = next(segmenter.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).to(device)
    mean = torch.zeros(segmenter.num_classes, height, width, device=device)
    for scale in scales:
        size = scaled_size(height, width, scale * short_side_px)
        view = _padded(transforms.resize(pixels, size, antialias=True), segmenter.size_divisor)
        views = torch.stack([view, view.flip(-1)]) if flip else view[None]
        scores = segmenter.scores(views)
        scores = (scores[0] + scores[1].flip(-1)) / 2 if flip else scores[0]
        inside = scores[None, :, : size[0], : size[1]]
        mean += functional.interpolate(inside, (height, width), mode="bilinear")[0] / len(scales)
    return mean


def to_grid(values: Float[Tensor, "classes height width"]) -> Float32[np.ndarray, "classes grid_height grid_width"]:
    """Means over cells of GRID_STRIDE pixels: what is stored of probabilities."""
    size = [-(-side // GRID_STRIDE) for side in values.shape[1:]]
    return functional.interpolate(values[None], size, mode="area")[0].float().cpu().numpy()


def _padded(pixels: UInt8[Tensor, "3 height width"], divisor: int) -> UInt8[Tensor, "3 padded_height padded_width"]:
    height, width = (-(-side // divisor) * divisor for side in pixels.shape[1:])
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device).round().to(torch.uint8)
    padded = mean[:, None, None].repeat(1, height, width)
    padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return padded
