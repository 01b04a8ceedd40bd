"""Linear layers of a frozen network, by the fastest product that this machine has for them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def frozen_linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None,
    activation: nn.Module | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """activation(x weight^T + bias), as `torch.nn.Linear` and the activation after it make it, but for rounding.

    In float32 on a CPU, and where no gradient is asked for, the product is oneDNN's: a tenth faster than that of
    the library which torch itself calls (`python -m benchmarks.prompt_step`), and GELU costs no pass of its own.
    """
    if not _is_for_onednn(x):
        y = functional.linear(x, weight, bias)
        return y if activation is None else activation(y)
    if not isinstance(activation, nn.GELU):  # the one activation of CLIPs that oneDNN has, too
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y if activation is None else activation(y)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], activation.approximate)


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        # An exported network is to run where torch alone is, whatever it was built with.
        and not torch.compiler.is_compiling()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
