"""What the workers of a training sum over all of them; Ray made their process group, and is not needed for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BUCKET_BYTES = 25 << 20  # of gradients that are summed together, as in torch's DistributedDataParallel


class GradientSum:
    """Sums gradients over all workers while the backward pass is still on its way.

    Parameters are put into buckets, in the order in which a backward pass reaches them. As soon as all gradients of a
    bucket are there its sum begins, and the pass goes on; buckets begin in the same order on every worker. A parameter
    that this worker's share did not reach is zero.

    Use as

        sums.begin()
        ...             # one backward pass, or several that add up: `sums.is_last = True` before the last of them
        sums.finish()

    A bucket whose sum has begun is done with. If the last pass breaks off and all passes are made anew (out of memory),
    its gradients come out the same, and are not looked at again: the other workers took part in that sum.

    Args:
        parameters: in the order of the network.
        bucket_bytes: of gradients that are summed together.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self.is_last = False
        self._works: list[Any] = []
        self._buckets: list[list[tuple[nn.Parameter, Tensor]]] = []
        self._flat: list[Tensor] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        for bucket in _in_buckets(list(reversed(parameters)), bucket_bytes):
            flat = bucket[0].new_zeros(sum(parameter.numel() for parameter in bucket))
            places = flat.split([parameter.numel() for parameter in bucket])
            # Laid out in memory as the parameter is: a fused optimizer goes through both as they lie there.
            views = [
                place.as_strided(parameter.shape, parameter.stride(), place.storage_offset())
                for parameter, place in zip(bucket, places, strict=True)
            ]
            self._bucket_of.update(dict.fromkeys(bucket, len(self._buckets)))
            self._buckets.append(list(zip(bucket, views, strict=True)))
            self._flat.append(flat)
        self._missing: list[set[nn.Parameter]] = []
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in parameters]

    def begin(self) -> None:
        """Before the first backward pass of a step."""
        self.is_last, self._works = False, []
        self._missing = [{parameter for parameter, _ in bucket} for bucket in self._buckets]

    def finish(self) -> None:
        """After the last one: every gradient is the sum over all workers."""
        while len(self._works) < len(self._buckets):
            self._sum_next()
        for work in self._works:
            work.wait()
        for bucket in self._buckets:
            for parameter, view in bucket:
                parameter.grad = view

    def close(self) -> None:
        """The parameters forget of it."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, parameter: nn.Parameter) -> None:
        number = self._bucket_of[parameter]
        if not self.is_last or number < len(self._works):
            return
        self._missing[number].discard(parameter)
        while len(self._works) < len(self._buckets) and not self._missing[len(self._works)]:
            self._sum_next()

    @torch.no_grad()
    def _sum_next(self) -> None:
        number = len(self._works)
        reached = [(view, parameter.grad) for parameter, view in self._buckets[number] if parameter.grad is not None]
        if len(reached) < len(self._buckets[number]):
            self._flat[number].zero_()
        if reached:
            torch._foreach_copy_([view for view, _ in reached], [gradient for _, gradient in reached])  # pyright: ignore[reportPrivateImportUsage]
        self._works.append(torch.distributed.all_reduce(self._flat[number], async_op=True))


def _in_buckets(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Cut where a bucket is full, and where the kind of numbers changes."""
    buckets: list[list[nn.Parameter]] = []
    num_bytes = 0
    for parameter in parameters:
        own_bytes = parameter.numel() * parameter.element_size()
        if not buckets or num_bytes + own_bytes > bucket_bytes or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            num_bytes = 0
        buckets[-1].append(parameter)
        num_bytes += own_bytes
    return buckets


def group_of_node(node_rank: int) -> Any:
    """The process group of the workers on this worker's node; all workers call it, and nodes may have few or many.

    Args:
        node_rank: which node this worker is on, from 0.
    """
    nodes: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(nodes, node_rank)
    own = None
    # Every worker takes part in making every group, in one order.
    for node in sorted(set(nodes)):
        ranks = [rank for rank, place in enumerate(nodes) if place == node]
        group = torch.distributed.new_group(ranks)
        own = group if node == node_rank else own
    return own


def sum_over_workers(values: Tensor, num_workers: int) -> Tensor:
    """Sums a tensor over all workers, in place; a GPU is not waited for.

    Args:
        values: of this worker; changed in place where there are several.
        num_workers: of the process group.

    Returns:
        The same tensor.
    """
    if num_workers > 1:
        torch.distributed.all_reduce(values)
    return values
