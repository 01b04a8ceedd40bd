"""The double itself: what CUDA refuses it refuses, and it counts what a card would wait for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support.cuda_double import CudaDouble, DoubleError, cuda_double


@pytest.fixture
def double() -> Iterator[CudaDouble]:
    with cuda_double(memory_bytes=64 << 20) as one:
        yield one


def test_tensors_of_two_devices_do_not_mix(double: CudaDouble):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device == torch.device("cuda:0")
    with pytest.raises(DoubleError, match="two devices"):
        torch.add(there, here)
    with pytest.raises(DoubleError, match="indices of the device"):
        here[there.long()]
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    assert (there + torch.tensor(2.0)).cpu().tolist() == [3, 3, 3]  # a number of the host is an argument


def test_waits_are_those_that_torch_warns_of(double: CudaDouble):
    x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
    waiting = [lambda: x.nonzero(), lambda: x[x > 0], lambda: x[0].item(), lambda: x.cpu(), lambda: x.tolist()]
    for action in waiting:
        with double.counting() as counts:
            action()
        assert counts.num_waits == 1, action
    for action in (lambda: x + 1, lambda: x.sum(), lambda: torch.zeros(3, device="cuda"), lambda: x[1:]):
        with double.counting() as counts:
            action()
        assert counts.num_waits == 0, action
    with double.counting() as counts:
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert (counts.num_waits, counts.num_copies, counts.copied_bytes) == (0, 1, 12)


def test_bytes_are_what_kernels_read_and_write(double: CudaDouble):
    x = torch.ones(1000, device="cuda")
    with double.counting() as counts:
        y = x + x[:1].expand(1000)
        y.view(10, 100)
    assert counts.num_launches == 1
    assert counts.num_bytes == 4 * (1000 + 1000 + 1)
    assert [site.partition(":")[0] for site in counts.bytes_moved] == ["gpu/test_double.py"]


def test_memory_ends(double: CudaDouble):
    kept = torch.zeros(40 << 20, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.add(kept, 1)
    assert double.allocated_bytes() == 40 << 20
    del kept
    assert double.allocated_bytes() == 0


def test_it_ends_with_its_context():
    with cuda_double():
        assert torch.cuda.device_count() == 1
        torch.zeros(1, device="cuda")
    assert not hasattr(torch.zeros(1), "elem")
