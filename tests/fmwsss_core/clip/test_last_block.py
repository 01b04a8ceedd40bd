"""The written-out gradient of the last block against autograd, for every kind of block that open_clip builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from fmwsss.core.clip.frozen_clip import FrozenClip
from tests.references.clip import embed_activation, random_clip

torch.set_num_threads(1)


def oracle(model: Any, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """One autograd pass for one image: the mean over patch tokens of the derivative."""
    activation = model.visual.transformer.resblocks[-1].ln_1(x).detach().requires_grad_()
    embedding = embed_activation(model, x, activation)[0]
    return torch.autograd.grad(embedding @ cotangent, activation)[0][0, 1:].mean(0)


@pytest.mark.parametrize("act", [nn.GELU, QuickGELU])
@pytest.mark.parametrize("has_layer_scale", [True, False])
@pytest.mark.parametrize("grid", [(3, 5), (1, 1)])
def test_gradient_against_autograd(act: type[nn.Module], has_layer_scale: bool, grid: tuple[int, int]):
    model: Any = random_clip()
    block = model.visual.transformer.resblocks[-1]
    block.mlp[1] = act()
    if not has_layer_scale:
        block.ls_1, block.ls_2 = nn.Identity(), nn.Identity()
    clip = FrozenClip(model, "small")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1 + grid[0] * grid[1], 24, dtype=torch.float64, generator=generator)
    image = torch.tensor([2, 0, 0, 1, 2])
    cotangent = torch.randn(5, 16, dtype=torch.float64, generator=generator)
    ours = clip.last_block(x).gradient(cotangent, image)
    expected = torch.stack([oracle(model, x[i : i + 1], u) for i, u in zip(image, cotangent, strict=True)])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


def test_its_own_gradient_is_its_transpose():
    clip = FrozenClip(random_clip(), "small")
    generator = torch.Generator().manual_seed(2)
    block = clip.last_block(torch.randn(2, 7, 24, dtype=torch.float64, generator=generator))
    image = torch.tensor([0, 1, 1])
    cotangent = torch.randn(3, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    direction = torch.randn(3, 24, dtype=torch.float64, generator=generator)
    (back,) = torch.autograd.grad((block.gradient(cotangent, image) * direction).sum(), cotangent)
    other = torch.randn(3, 16, dtype=torch.float64, generator=generator)
    expected = (block.gradient(other, image) * direction).sum()
    torch.testing.assert_close((back * other).sum(), expected, rtol=1e-10, atol=0)
