"""Class-aware attention-based affinity, CAA (method M2.2, from CLIP-ES)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

BoxOn = Literal["map", "result"]
AffinityMap = Literal["normalised", "raw"]


@torch.no_grad()
def refine(
    attention: Float[Tensor, "tokens tokens"],
    cams: Float[Tensor, "classes tokens"],
    grid: tuple[int, int],
    box_threshold: float | None,
    num_sinkhorn: int,
    *,
    box_on: BoxOn = "map",
    spread: Float[Tensor, "classes tokens"] | None = None,
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
        box_on: whether the mask multiplies the map that A^2 spreads (both programs), or what comes out of it (eq. 4 of
            the paper as it is written).
        spread: the maps that A^2 spreads, where they are not those that the boxes come from; the authors have raw ones
            for three of their four kinds of seeds.
    """
    assert grid[0] * grid[1] == cams.shape[1], (grid, cams.shape)
    tiny = torch.finfo(attention.dtype).tiny
    affinity = attention
    for _ in range(num_sinkhorn):
        affinity = affinity / affinity.sum(dim=0, keepdim=True).clamp(min=tiny)
        affinity = affinity / affinity.sum(dim=1, keepdim=True).clamp(min=tiny)
    affinity = (affinity + affinity.T) / 2
    maps = cams if spread is None else spread
    boxes = torch.ones_like(maps)
    if box_threshold is not None:
        grids = cams.cpu().numpy().reshape(-1, *grid)
        found = np.stack([box_mask(cam, box_threshold) for cam in grids]) if len(grids) else np.zeros(grids.shape, bool)
        boxes = torch.from_numpy(found).flatten(1).to(maps)
    if box_on == "map":
        maps = maps * boxes
    # Two thin products instead of the square of a tokens x tokens matrix.
    refined = (affinity @ (affinity @ maps.T)).T
    return refined * boxes if box_on == "result" else refined


def box_mask(cam: Float[np.ndarray, "height width"], threshold: float) -> Bool[np.ndarray, "height width"]:
    """Union of the bounding boxes of the 8-connected regions strictly above `threshold` times the maximum (M2.2).

    Args:
        cam: one map, of any scale.
        threshold: share of the maximum, 0 to 1.

    Returns:
        True inside of a box.
    """
    regions = np.zeros(cam.shape, dtype=np.int32)
    ndimage.label(cam > threshold * cam.max(), structure=np.ones((3, 3)), output=regions)
    mask = np.zeros(cam.shape, dtype=bool)
    for rows, columns in ndimage.find_objects(regions):
        mask[rows, columns] = True
    return mask
