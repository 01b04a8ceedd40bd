"""The image and text towers by open_clip's own modules, one block at a time, and a CLIP small enough for float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from torch.nn import functional


def random_clip(seed: int = 0, layers: int = 3, dtype: torch.dtype = torch.float64, patch: int = 8, **text) -> CLIP:
    """A random CLIP with CLIP's 49408 tokens; its norms are random too, so that leaving one out shows."""
    torch.manual_seed(seed)
    model: Any = CLIP(
        embed_dim=16,
        vision_cfg=CLIPVisionCfg(
            image_size=4 * patch, layers=layers, width=24, patch_size=patch, head_width=8, ls_init_value=0.7
        ),
        text_cfg=CLIPTextCfg(context_length=77, vocab_size=49408, width=12, heads=2, layers=2, **text),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
        # The initial token embeddings are so small that every prompt would look alike.
        model.token_embedding.weight.mul_(50)
    return model.to(dtype).eval()


def bilinear_position_embedding(model: Any, grid: tuple[int, int]) -> Tensor:
    """Half-pixel bilinear interpolation, one token at a time; the class entry stays."""
    table = model.visual.positional_embedding.detach()
    rows, columns = model.visual.grid_size
    square = table[1:].reshape(rows, columns, -1)
    tokens = [table[0]]
    for i in range(grid[0]):
        for j in range(grid[1]):
            y = max((i + 0.5) * rows / grid[0] - 0.5, 0.0)
            x = max((j + 0.5) * columns / grid[1] - 0.5, 0.0)
            top, left = math.floor(y), math.floor(x)
            token = torch.zeros_like(table[0])
            for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
                    token += row_weight * column_weight * square[min(row, rows - 1), min(column, columns - 1)]
            tokens.append(token)
    return torch.stack(tokens)


@torch.no_grad()
def image_features(model: Any, pixels: Tensor, num_averaged: int) -> tuple[Tensor, Tensor]:
    """Last-block input and attention, every block's maps kept and averaged at the end."""
    visual = model.visual
    patches = visual.conv1(pixels)
    tokens = patches.flatten(2).transpose(1, 2)
    class_tokens = torch.stack([visual.class_embedding[None]] * len(pixels))
    embedded = torch.cat([class_tokens, tokens], dim=1)
    x = visual.ln_pre(embedded + bilinear_position_embedding(model, (patches.shape[2], patches.shape[3])))
    inputs, attentions = [], []
    for block in visual.transformer.resblocks:
        inputs.append(x)
        normed = block.ln_1(x)
        attentions.append(block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)[1])
        x = block(x)
    return inputs[-1], torch.stack(attentions[-num_averaged:]).mean(dim=0)[:, 1:, 1:]


def embed_activation(model: Any, last_block_input: Tensor, activation: Tensor) -> Tensor:
    """f_I from the activation of all tokens; the residual path comes from the input (M2). Differentiable twice."""
    visual = model.visual
    block = visual.transformer.resblocks[-1]
    # need_weights takes the unfused attention: the fused one has no second derivative.
    attended = block.attn(activation, activation, activation, need_weights=True)[0]
    x = last_block_input + block.ls_1(attended)
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return functional.normalize(visual.ln_post(x)[:, 1:].mean(dim=1) @ visual.proj, dim=-1)


@torch.no_grad()
def text_embedding(model: Any, ids: Tensor) -> Tensor:
    """open_clip's own, over the whole context length."""
    return model.encode_text(ids, normalize=True)


def whole_text_tower(model: Any, prompts: list[Tensor]) -> Tensor:
    """Embeddings of prompts given as token embeddings, each alone over the whole context length; [EOS] is the last."""
    rows = []
    for prompt in prompts:
        x = functional.pad(prompt, (0, 0, 0, model.context_length - len(prompt)))[None]
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        rows.append(model.ln_final(x)[0, len(prompt) - 1] @ model.text_projection)
    return functional.normalize(torch.stack(rows), dim=-1)
