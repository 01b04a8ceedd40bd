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

    In float32 on a CPU, and where no gradient is asked for, the product is oneDNN's: faster than that of the library
    which torch itself calls (`python -m benchmarks.prompt_step` compares them), and GELU costs no pass of its own.
    Gradients are those of reverse mode; forward mode (`torch.func.jvp`) does not see through oneDNN.

    Args:
        x: activations; gradients go to them alone.
        weight: of the layer, frozen.
        bias: of the layer, or None.
        activation: applied to the product; None for none.

    Returns:
        The layer's output, in the type of `x`.
    """
    if not _is_for_onednn(x, weight, bias):
        y = functional.linear(x, weight, bias)
        return y if activation is None else activation(y)
    bias = None if bias is None else bias.contiguous()  # it reads the bias as if it were
    if not isinstance(activation, nn.GELU):  # the one activation of CLIPs that oneDNN has, too
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y if activation is None else activation(y)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], activation.approximate)


def _is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # First, for compilers don't read further. An exported network is to run where torch alone is, however it was built.
    if torch.compiler.is_compiling():
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        x.device.type == "cpu"
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
