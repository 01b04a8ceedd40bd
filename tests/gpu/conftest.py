"""Every test here runs twice: on the double of CUDA, everywhere, and on a real card, where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.card import Card
from tests.support.cuda_double import cuda_double


@pytest.fixture(params=["double", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest) -> Iterator[Card]:
    """The device; see `Card`."""
    torch.set_num_threads(1)
    if request.param == "double":
        with cuda_double() as double:
            yield Card(torch.device("cuda:0"), double)
        return
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    # Convolutions in TF32, their default, would not give the CPU's masks.
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield Card(torch.device("cuda:0"), None)
    torch.backends.cudnn.allow_tf32 = before
