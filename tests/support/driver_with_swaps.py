"""`fmwsss` itself, of which benchmarks/chaos can set the clock and replace weights (see cheap_stages)."""

from __future__ import annotations

import os

from torch import nn

from fmwsss.core.toy.models import new_sam


def sam() -> nn.Module:
    """For `sam.factory`: the network of the toy world with the weights of the file CHEAP_WEIGHTS_FILE."""
    from safetensors.torch import load_file

    model = new_sam()
    state = load_file(os.environ["CHEAP_WEIGHTS_FILE"])
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


if __name__ == "__main__":
    from fmwsss.jobs.cli import main
    from tests.support.cheap_stages import step_clock

    step_clock()
    main()
