"""Linear layers by oneDNN against those of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn
from torch.nn import functional

from fmwsss.core.clip.frozen_linear import frozen_linear

ACTIVATIONS = [None, nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), QuickGELU()]


def _layer(seed: int, bias: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor | None]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, 40, generator=draw, dtype=torch.float64)
    return weight.to(dtype), torch.randn(24, generator=draw, dtype=torch.float64).to(dtype) if bias else None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (7, 40), (3, 5, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_layer_and_its_activation(activation: Any, bias: bool, shape: tuple[int, ...], dtype: torch.dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = functional.linear(x, *_layer(0, bias, torch.float64))
    expected = expected if activation is None else activation(expected)
    found = frozen_linear(x.to(dtype), *_layer(0, bias, dtype), activation)
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)


def test_rows_that_do_not_lie_together_in_memory():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).T
    weight, bias = _layer(0, bias=True)
    assert bias is not None
    weight, bias = weight.T.contiguous().T, torch.stack([bias, -bias], 1).flatten()[::2]
    torch.testing.assert_close(frozen_linear(x, weight, bias), functional.linear(x, weight, bias))


def test_onednn_has_a_part_in_it_only_where_nothing_is_lost():
    """Not where a gradient is asked for, in lower precision, or in a network that is exported."""
    weight, bias = _layer(0, bias=True)
    assert bias is not None
    x = torch.randn(2, 40)

    def operators(function: Any) -> str:
        with torch.profiler.profile() as profile:
            function()
        return " ".join(event.key for event in profile.key_averages())

    assert "mkldnn::_linear_pointwise" in operators(lambda: frozen_linear(x, weight, bias, nn.GELU()))
    for needed in (weight, bias):
        frozen_linear(x, weight.requires_grad_(needed is weight), bias.requires_grad_(needed is bias)).sum().backward()
        assert needed.grad is not None
    weight, bias = weight.detach(), bias.detach()
    with torch.backends.mkldnn.flags(enabled=False):
        assert "mkldnn::" not in operators(lambda: frozen_linear(x, weight, bias))
    asked = x.clone().requires_grad_()
    assert "mkldnn::" not in operators(lambda: frozen_linear(asked, weight, bias).sum().backward())
    torch.testing.assert_close(asked.grad, weight.sum(0).expand(2, -1))
    with torch.no_grad():
        assert "mkldnn::_linear_pointwise" in operators(lambda: frozen_linear(asked, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen_linear(x, weight, bias).dtype == torch.bfloat16

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return frozen_linear(x, weight, bias, nn.GELU())

    assert "mkldnn" not in str(torch.export.export(Layer(), (x,)).graph)
