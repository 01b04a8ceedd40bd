"""What the workers of a training sum over all of them; Ray made their process group, and is not needed for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sums gradients over all workers, in one message; a parameter that this worker's share did not reach is zero."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([grad.numel() for grad in grads]), strict=True):
        # Laid out in memory as the parameter is: a fused optimizer goes through both as they lie there.
        parameter.grad = torch.empty_like(parameter).copy_(part.view_as(parameter))


def sum_numbers(values: Sequence[float], num_workers: int, device: torch.device) -> list[float]:
    """Sums numbers over all workers, in float64."""
    if num_workers == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return summed.tolist()
