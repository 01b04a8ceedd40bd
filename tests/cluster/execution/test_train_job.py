"""What the workers of a training sum: gradients, whatever the buckets, the passes and the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmwsss.cluster.execution.gradients import GradientSum, group_of_node

WORLD = 2


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"first": nn.Linear(5, 7), "unused": nn.Linear(3, 3), "last": nn.Linear(7, 2), "of-one": nn.Linear(7, 2)}
    )


def loss_of(net: nn.ModuleDict, rank: int, piece: int) -> torch.Tensor:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * rank + piece))
    hidden = net["first"](x).tanh()
    loss = net["last"](hidden).square().mean()
    # Only the first worker's images reach this one.
    return loss + net["of-one"](hidden).sum() if rank == 0 else loss


def worker(rank: int, folder: str, bucket_bytes: int, breaks_off: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    net = network()
    sums = GradientSum([*net.parameters()], bucket_bytes)
    for _ in range(2):
        net.zero_grad()
        sums.begin()
        if breaks_off and rank == 0:
            # The last of two passes gets as far as the last layers; then both are made anew, in three.
            loss_of(net, rank, 0).backward()
            sums.is_last = True
            handle = net["first"].register_full_backward_hook(_out_of_memory)
            with pytest.raises(MemoryError):
                loss_of(net, rank, 1).backward()
            handle.remove()
            net.zero_grad()
        for piece in range(2):
            sums.is_last = piece == 1
            loss_of(net, rank, piece).backward()
        sums.finish()
    torch.save([parameter.grad for parameter in net.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _out_of_memory(*_: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize(("bucket_bytes", "breaks_off"), [(1, False), (100, True), (1 << 20, False)])
def test_gradients_are_those_of_both_workers_together(bucket_bytes: int, breaks_off: bool, tmp_path: Path) -> None:
    start: Callable[..., Any] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    start(worker, (str(tmp_path), bucket_bytes, breaks_off), nprocs=WORLD)
    net = network()
    torch.stack([loss_of(net, rank, piece) for rank in range(WORLD) for piece in range(2)]).sum().backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for parameter, one, other in zip(net.parameters(), *found, strict=True):
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def worker_of_node(rank: int, folder: str, nodes: tuple[int, ...]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(nodes))
    group = group_of_node(nodes[rank])
    values = torch.tensor([10**rank])
    torch.distributed.all_reduce(values, group=group)
    torch.save((torch.distributed.get_rank(group), values), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_nodes_with_two_workers_and_with_one_have_a_group_each(tmp_path: Path) -> None:
    start: Callable[..., Any] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    start(worker_of_node, (str(tmp_path), (1, 0, 1)), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert [rank for rank, _ in found] == [0, 0, 1]
    assert [int(values) for _, values in found] == [101, 10, 101]


def test_sums_begin_before_the_backward_pass_is_over(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        sums = GradientSum([*net.parameters()], bucket_bytes=1)
        seen: list[int] = []
        net[0].register_full_backward_pre_hook(lambda *_: seen.append(len(sums._works)))
        for is_last in (False, True):
            net.zero_grad()
            sums.begin()
            sums.is_last = is_last
            net(torch.ones(1, 3, requires_grad=True)).sum().backward()
            sums.finish()
        # In a pass that is not the last one none has begun; in the last one those of the layer above have.
        assert seen == [0, 2]
    finally:
        torch.distributed.destroy_process_group()


def test_summed_gradients_are_stepped_with_whatever_the_layout_of_the_parameter(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        start = torch.arange(24.0).view(1, 2, 3, 4)
        parameter = torch.nn.Parameter(start.clone().to(memory_format=torch.channels_last))
        assert not parameter.is_contiguous()
        optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=True)
        sums = GradientSum([parameter])
        sums.begin()
        parameter.grad = (start - 10).to(memory_format=torch.channels_last)
        sums.finish()
        assert torch.equal(parameter.grad, start - 10)
        optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    # The first step of Adam is as long everywhere, and against the sign of the gradient.
    torch.testing.assert_close(parameter.detach(), start - 0.1 * (start - 10).sign())
