"""Patch tokens that stand out from their like, and their mending (method M11, F1 b; SC-CLIP)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

NUM_NEIGHBOURS = 30
CONTAMINATION = 0.05


def local_outliers(
    tokens: Float[Tensor, "batch tokens width"],
    num_neighbours: int = NUM_NEIGHBOURS,
    contamination: float = CONTAMINATION,
) -> Bool[Tensor, "batch tokens"]:
    """The tokens of each image with the highest local outlier factors.

    As `sklearn.neighbors.LocalOutlierFactor(num_neighbours, contamination=...)` decides, but for a batch, where the
    tokens are.

    Args:
        tokens: of the patches alone.
        num_neighbours: of each token; all others where there are fewer.
        contamination: share of the tokens whose factor is above the threshold.
    """
    num_tokens = tokens.shape[1]
    if num_tokens < 2:
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    distance = torch.cdist(tokens, tokens)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest, index = distance.topk(min(num_neighbours, num_tokens - 1), largest=False)

    def of_neighbours(values: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens neighbours"]:
        return values[:, None].expand(-1, num_tokens, -1).gather(2, index)

    reach = torch.maximum(nearest, of_neighbours(nearest[:, :, -1]))
    density = 1 / (reach.mean(dim=2) + 1e-10)
    inverse_factor = -of_neighbours(density).mean(dim=2) / density
    return inverse_factor < torch.quantile(inverse_factor, contamination, dim=1, keepdim=True)


def mend(
    tokens: Float[Tensor, "batch tokens width"], is_outlier: Bool[Tensor, "batch tokens"], grid: tuple[int, int]
) -> Float[Tensor, "batch tokens width"]:
    """Each outlier becomes the mean of those of its eight neighbours that are none; without any it stays.

    Args:
        tokens: of the patches alone, row by row.
        is_outlier: which of them are replaced.
        grid: (h, w) of the patches.
    """
    inlier = (~is_outlier)[:, :, None].to(tokens)
    sums = _sum_of_neighbourhood(tokens * inlier, grid)
    counts = _sum_of_neighbourhood(inlier, grid)
    return torch.where(is_outlier[:, :, None] & (counts > 0.5), sums / counts.clamp(min=1), tokens)


def _sum_of_neighbourhood(
    values: Float[Tensor, "batch tokens width"], grid: tuple[int, int]
) -> Float[Tensor, "batch tokens width"]:
    square = values.transpose(1, 2).unflatten(2, grid)
    sums = 9 * functional.avg_pool2d(square, kernel_size=3, stride=1, padding=1)
    return sums.flatten(2).transpose(1, 2)
