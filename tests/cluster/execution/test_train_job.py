"""What the workers of a training share."""

from __future__ import annotations

from pathlib import Path

import torch

from fmwsss.cluster.execution.gradients import sum_gradients


def test_summed_gradients_are_stepped_with_whatever_the_layout_of_the_parameter(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        start = torch.arange(24.0).view(1, 2, 3, 4)
        parameter = torch.nn.Parameter(start.clone().to(memory_format=torch.channels_last))
        assert not parameter.is_contiguous()
        optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=True)
        parameter.grad = (start - 10).to(memory_format=torch.channels_last)
        sum_gradients([parameter])
        assert torch.equal(parameter.grad, start - 10)
        optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    # The first step of Adam is as long everywhere, and against the sign of the gradient.
    torch.testing.assert_close(parameter.detach(), start - 0.1 * (start - 10).sign())
