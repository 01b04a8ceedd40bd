"""Class-aware attention-based affinity, CAA (method M2.2, from CLIP-ES)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor


@torch.no_grad()
def refine(
    attention: Float[Tensor, "tokens tokens"],
    cams: Float[Tensor, "classes tokens"],
    grid: tuple[int, int],
    box_threshold: float | None,
    num_sinkhorn: int,
) -> Float[Tensor, "classes tokens"]:
    """Spread the maps of one image along its attention: A^2 (mask * CAM), A the symmetric Sinkhorn of W (eq. 4, M2.2).

    Never part of a graph.

    Args:
        attention: W, the averaged attention between patches (`ImageFeatures.attention` of one image).
        cams: maps of the present classes, usually normalised.
        grid: (h, w) patch tokens, h*w = tokens.
        box_threshold: lambda; the mask of a class is the union of the bounding boxes of the 8-connected regions of
            its map strictly above lambda times its maximum. None: no mask.
        num_sinkhorn: rounds of division by column sums, then by row sums (CLIP-ES 3, FMA-WSSS 1).
    """
    assert grid[0] * grid[1] == cams.shape[1], (grid, cams.shape)
    tiny = torch.finfo(attention.dtype).tiny
    affinity = attention
    for _ in range(num_sinkhorn):
        affinity = affinity / affinity.sum(dim=0, keepdim=True).clamp(min=tiny)
        affinity = affinity / affinity.sum(dim=1, keepdim=True).clamp(min=tiny)
    affinity = (affinity + affinity.T) / 2
    if box_threshold is not None:
        maps = cams.cpu().numpy().reshape(-1, *grid)
        boxes = np.stack([box_mask(cam, box_threshold) for cam in maps]) if len(maps) else np.zeros(maps.shape, bool)
        cams = cams * torch.from_numpy(boxes).flatten(1).to(cams.device)
    # Two thin products instead of the square of a tokens x tokens matrix.
    return (affinity @ (affinity @ cams.T)).T


def box_mask(cam: Float[np.ndarray, "height width"], threshold: float) -> Bool[np.ndarray, "height width"]:
    """Union of the bounding boxes of the 8-connected regions strictly above `threshold` times the maximum (M2.2)."""
    regions = np.zeros(cam.shape, dtype=np.int32)
    ndimage.label(cam > threshold * cam.max(), structure=np.ones((3, 3)), output=regions)
    mask = np.zeros(cam.shape, dtype=bool)
    for rows, columns in ndimage.find_objects(regions):
        mask[rows, columns] = True
    return mask
