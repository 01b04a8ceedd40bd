"""TagCLIP from docs/method.md, M8.2: one image, one head, one token, one pair of patches at a time."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def attend(block: Any, x: Tensor, seen: list[list[bool]]) -> tuple[Tensor, Tensor]:
    """The residual block on (tokens, width), where a token sees those that `seen` allows it; and its mean attention."""
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    query, key, value = (block.ln_1(x) @ weight.T + bias).chunk(3, dim=1)
    heads, width = block.attn.num_heads, block.attn.head_dim
    joined, mean = torch.zeros_like(x), torch.zeros(len(x), len(x), dtype=x.dtype)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            allowed = [j for j in range(len(x)) if seen[i][j]]
            logits = torch.stack([query[i, own] @ key[j, own] / width**0.5 for j in allowed])
            for j, share in zip(allowed, torch.softmax(logits, 0), strict=True):
                joined[i, own] += share * value[j, own]
                mean[i, j] += share / heads
    x = x + block.ls_1(block.attn.out_proj(joined))
    return x + block.ls_2(block.mlp(block.ln_2(x))), mean


def tower(visual: Any, x: Tensor, seen: list[list[bool]], alone_at_last: bool) -> tuple[Tensor, list[Tensor]]:
    """All tokens in the shared space, unit length, and each block's attention between patches."""
    only_itself = [[i == j for j in range(len(x))] for i in range(len(x))]
    attention = []
    for number, block in enumerate(visual.transformer.resblocks):
        is_last = number + 1 == len(visual.transformer.resblocks)
        x, mean = attend(block, x, only_itself if is_last and alone_at_last else seen)
        attention.append(mean[1:, 1:])
    return functional.normalize(visual.ln_post(x) @ visual.proj, dim=1), attention


def boxes(values: list[list[float]]) -> list[list[bool]]:
    """Bounding boxes of the 8-connected regions above the mean of a map that is scaled to 0..1."""
    low, high = min(map(min, values)), max(map(max, values))
    scaled = [[(value - low) / (high - low) for value in row] for row in values]
    mean = sum(map(sum, scaled)) / (len(scaled) * len(scaled[0]))
    inside = {(y, x) for y, row in enumerate(scaled) for x, value in enumerate(row) if value > mean}
    mask = [[False] * len(row) for row in scaled]
    while inside:
        region, queue = [], deque([inside.pop()])
        while queue:
            y, x = queue.popleft()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & inside
            inside -= near
            queue.extend(near)
        for y in range(min(y for y, _ in region), max(y for y, _ in region) + 1):
            for x in range(min(x for _, x in region), max(x for _, x in region) + 1):
                mask[y][x] = True
    return mask


def scores(clip: Any, pixels: Tensor, texts: Tensor, num_classes: int, first: int, least: int) -> list[float]:
    """Of one image; `first` is the first averaged block, `least` how many blocks must find a pair alike."""
    visual, patch = clip.model.visual, clip.patch_size
    height, width = pixels.shape[2] // patch, pixels.shape[3] // patch
    x = first_tokens(clip, pixels)
    everything = [[True] * len(x) for _ in x]
    tokens, attention = tower(visual, x, everything, alone_at_last=True)
    coarse = [torch.softmax(clip.logit_scale * token @ texts.T, 0) for token in tokens[1:]]
    count = height * width
    kept = torch.zeros(count, count, dtype=x.dtype)
    for i in range(count):
        for j in range(count):
            votes = sum(bool(own[i, j] > own.mean()) for own in attention)
            mean = sum(float(own[i, j]) for own in attention[first:-1]) / len(attention[first:-1])
            kept[i, j] = mean if votes >= least else 0.0
    maps = []
    for text in range(len(texts)):
        spread = [sum(float(kept[i, j]) * float(coarse[j][text]) for j in range(count)) for i in range(count)]
        inside = boxes([spread[row * width : (row + 1) * width] for row in range(height)])
        flat = [inside[j // width][j % width] for j in range(count)]
        maps.append(
            [sum(float(kept[i, j]) * float(coarse[j][text]) * flat[j] for j in range(count)) for i in range(count)]
        )
    low, high = min(map(min, maps)), max(map(max, maps))
    found = [max(own) for own in maps[:num_classes]]
    side = round(224 / patch)
    for name in range(num_classes):
        if found[name] <= low + 0.5 * (high - low):
            continue
        own_low, own_high = min(maps[name]), max(maps[name])
        upper = [(value - own_low) / (own_high - own_low) > 0.5 for value in maps[name]]
        rows = [i // width for i in range(count) if upper[i]]
        columns = [i % width for i in range(count) if upper[i]]
        top, bottom, left, right = min(rows), max(rows) + 1, min(columns), max(columns) + 1
        crop = pixels[:, :, top * patch : bottom * patch, left * patch : right * patch]
        crop = functional.interpolate(crop, size=(side * patch, side * patch), mode="bilinear", align_corners=False)
        seen = [True]
        for y in range(side):
            for x in range(side):
                row, column = top + y * (bottom - top) // side, left + x * (right - left) // side
                seen.append(upper[row * width + column])
        x = first_tokens(clip, crop)
        by_class_token = [seen, *([True] * len(x) for _ in range(len(x) - 1))]
        token = tower(visual, x, by_class_token, alone_at_last=False)[0][0]
        said = torch.softmax(clip.logit_scale * token @ texts.T, 0)
        found[name] = 0.5 * found[name] + 0.5 * float(said[name])
    return found


def first_tokens(clip: Any, pixels: Tensor) -> Tensor:
    """(tokens, width) before the first block, class token first."""
    visual = clip.model.visual
    patches = visual.conv1(pixels)
    positions = clip.position_embedding((patches.shape[2], patches.shape[3]))
    return visual.ln_pre(torch.cat([visual.class_embedding[None], patches[0].flatten(1).T]) + positions)
