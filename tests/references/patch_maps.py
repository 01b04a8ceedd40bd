"""F1 of method M11 from its equations: one image, one head, one patch at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def lof_outliers(tokens: np.ndarray, num_neighbours: int, contamination: float) -> np.ndarray:
    """Local outlier factor (Breunig et al. 2000), one point at a time; threshold as scikit-learn's."""
    n = len(tokens)
    k = min(num_neighbours, n - 1)
    distance = [[math.dist(a, b) for b in tokens] for a in tokens]
    nearest = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: distance[i][j])[:k] for i in range(n)]
    k_distance = [distance[i][nearest[i][-1]] for i in range(n)]
    density = [1 / (sum(max(distance[i][j], k_distance[j]) for j in nearest[i]) / k + 1e-10) for i in range(n)]
    factor = [sum(density[j] for j in nearest[i]) / k / density[i] for i in range(n)]
    return -np.array(factor) < np.percentile(-np.array(factor), 100 * contamination)


def mend(tokens: np.ndarray, is_outlier: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    mended = tokens.copy()
    for y in range(grid[0]):
        for x in range(grid[1]):
            near = [
                (y + dy) * grid[1] + x + dx
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
                if 0 <= y + dy < grid[0] and 0 <= x + dx < grid[1] and (dy, dx) != (0, 0)
            ]
            good = [tokens[j] for j in near if not is_outlier[j]]
            if is_outlier[y * grid[1] + x] and good:
                mended[y * grid[1] + x] = sum(good) / len(good)
    return mended


def cosines(tokens: Tensor) -> Tensor:
    return torch.tensor([[float(a @ b / a.norm() / b.norm()) for b in tokens] for a in tokens], dtype=tokens.dtype)


def averaging(similarity: Tensor) -> Tensor:
    rows = []
    for row in similarity.tolist():
        kept = [value if value >= 0.4 else 0.0 for value in row]
        rows.append([value / sum(kept) for value in kept])
    return torch.tensor(rows, dtype=similarity.dtype)


def similarity_attention(similarity: Tensor) -> Tensor:
    mean = float(similarity.mean())
    rows = []
    for row in similarity.tolist():
        terms = [math.exp(3 * (value - mean)) if value >= mean else 0.0 for value in row]
        rows.append([term / sum(terms) for term in terms])
    return torch.tensor(rows, dtype=similarity.dtype)


def attention(left: Tensor, right: Tensor, grid: tuple[int, int], deviation: float | None, has_class: bool) -> Tensor:
    """Softmax of the scaled products of one head, a query at a time; `right` begins with the class token or not."""
    rows = []
    for i, query in enumerate(left):
        logits = []
        for j, key in enumerate(right):
            place = j - 1 if has_class else j
            logit = float(query @ key) / math.sqrt(len(query))
            if deviation is not None and place >= 0:
                dy, dx = i // grid[1] - place // grid[1], i % grid[1] - place % grid[1]
                logit += math.exp(-(dy**2 + dx**2) / (2 * deviation**2))
            logits.append(logit)
        terms = [math.exp(logit - max(logits)) for logit in logits]
        rows.append([term / sum(terms) for term in terms])
    return torch.tensor(rows, dtype=left.dtype)


SUMS = {
    "query-key": [("q", "k", 1.0)],
    "key-key": [("k", "k", 1.0)],
    "query-query": [("q", "q", 1.0)],
    "value-value": [("v", "v", 1.0)],
    "query-query+key-key": [("q", "q", 1.0), ("k", "k", 1.0)],
    "mean-of-three": [("q", "q", 1 / 3), ("k", "k", 1 / 3), ("v", "v", 1 / 3)],
}


@torch.no_grad()
def last_block(model: Any, x: Tensor, grid: tuple[int, int], settings: Any, like: Tensor | None) -> Tensor:
    """F1 a and c: what the last block makes of the patches of one image; x begins with the class token."""
    block = model.visual.transformer.resblocks[-1]
    if like is not None:
        x = torch.cat([x[:1], averaging(like) @ x[1:]])
    width, num_heads = x.shape[1], block.attn.num_heads
    projected = block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    part = dict(zip("qkv", projected.split(width, dim=1), strict=True))
    joined = []
    for head in range(num_heads):
        own = slice(head * width // num_heads, (head + 1) * width // num_heads)
        q_k_v = {name: values[:, own] for name, values in part.items()}
        value = q_k_v["v"]
        if settings.attention == "identity":
            out = value[1:]
        else:
            first = 0 if settings.class_token else 1
            out = 0
            for left, right, weight in SUMS[settings.attention]:
                keys = q_k_v[right][first:]
                deviation, has_class = settings.neighbourhood_patches, settings.class_token
                out = out + weight * attention(q_k_v[left][1:], keys, grid, deviation, has_class) @ value[first:]
        if like is not None:
            out = 0.5 * similarity_attention(like) @ value[1:] + 0.5 * out
        joined.append(out)
    out = block.ls_1(block.attn.out_proj(torch.cat(joined, dim=1)))
    if settings.residual:
        out = x[1:] + out
    if settings.mlp:
        out = out + block.ls_2(block.mlp(block.ln_2(out)))
    return out


@torch.no_grad()
def patch_embedding(model: Any, inputs: list[Tensor], grid: tuple[int, int], settings: Any) -> Tensor:
    """Unit vectors of the patches of one image.

    `inputs`: of every block, class token first; the output of block k (from 1) is the input of block k + 1.
    """
    last, num_blocks = inputs[-1], len(inputs)

    def mended(x: Tensor) -> Tensor:
        if not settings.mend_outliers:
            return x
        is_outlier = lof_outliers(last[1:].numpy(), 30, 0.05)
        return torch.cat([x[:1], torch.from_numpy(mend(x[1:].numpy(), is_outlier, grid))])

    def block_at(depth: float) -> int:
        return max(1, min(num_blocks - 1, round(depth * num_blocks)))

    def after(block: int) -> Tensor:
        return mended(inputs[min(block, num_blocks - 1)])

    like = None
    if settings.similarity_depth is not None:
        like = cosines(after(block_at(settings.similarity_depth))[1:])
    passes = [mended(last)]
    if settings.summed_depths is not None:
        first, final = (block_at(depth) for depth in settings.summed_depths)
        passes.append(sum((after(block) for block in range(first, final + 1)), torch.zeros_like(last)))
    total = 0
    for x in passes:
        out = last_block(model, x, grid, settings, like)
        if like is not None:
            out = out + 0.3 * last[0]
        if settings.smoothing_depth is not None:
            out = averaging(cosines(after(block_at(settings.smoothing_depth))[1:])) @ out
        total = total + out
    embedded = model.visual.ln_post(total) @ model.visual.proj
    return torch.stack([row / row.norm() for row in embedded])


def decide(similarity, present, softmax_scale: float | None, with_absent: bool):
    """(image, class, map) of each positive, and the background of each image (None without words or softmax)."""
    rows, backgrounds = [], []
    num_classes = present.shape[1]
    for i, own in enumerate(similarity.tolist()):
        texts = [t for t in range(len(own[0])) if t >= num_classes or present[i, t] or with_absent]

        def probability(patch, text, texts=texts):
            return math.exp(softmax_scale * patch[text]) / sum(math.exp(softmax_scale * patch[t]) for t in texts)

        for c in range(num_classes):
            if present[i, c]:
                plain = softmax_scale is None or len(texts) == 1
                rows.append((i, c, [patch[c] if plain else probability(patch, c) for patch in own]))
        words = [t for t in texts if t >= num_classes]
        if softmax_scale is not None and words:
            backgrounds.append([max(probability(patch, t) for t in words) for patch in own])
    return rows, backgrounds or None
