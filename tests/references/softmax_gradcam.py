"""Softmax-GradCAM as the authors compute it (M2.1 a): a graph of the gradient, and a second backward through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.clip import embed_activation


def softmax_gradcam(model: Any, last_block_input: Tensor, foreground: Tensor, background: Tensor, present: Tensor):
    """One list entry (image, class, cam) per positive."""
    rows = []
    for i in range(len(present)):
        x = last_block_input[i : i + 1]
        activation = model.visual.transformer.resblocks[-1].ln_1(x).detach().requires_grad_()
        embedding = embed_activation(model, x, activation)[0]
        classes = present[i].nonzero()[:, 0].tolist()
        texts = [foreground[c] for c in classes] + list(background)
        logits = [model.logit_scale.exp() * (embedding @ text) for text in texts]
        for k, c in enumerate(classes):
            score = logits[k].exp() / sum(logit.exp() for logit in logits)
            gradient = torch.autograd.grad(score, activation, create_graph=True)[0][0, 1:]
            weights = gradient.mean(dim=0)
            rows.append((i, c, activation.detach()[0, 1:] @ weights))
    return rows


def normalise(cam: Tensor) -> Tensor:
    """Row by row, value by value."""
    out = torch.zeros_like(cam)
    for i, row in enumerate(cam.tolist()):
        rectified = [max(value, 0.0) for value in row]
        shifted = [value - min(rectified) for value in rectified]
        for j, value in enumerate(shifted):
            out[i, j] = value / max(shifted) if max(shifted) > 0 else 0.0
    return out


def scale_as_clip_es(cam: Tensor) -> Tensor:
    """CLIP-ES's way: what a GradCAM package makes of a map, and its own program once more."""
    rows = []
    for row in cam:
        for _ in range(2):
            row = row.clamp(min=0)
            row = row - row.min()
            row = row / (1e-7 + row.max())
        rows.append(row)
    return torch.stack(rows)
