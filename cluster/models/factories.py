"""User factories: `package.module:function` of a run file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmwsss.cluster.models.spec import ModelError

if TYPE_CHECKING:
    from torch import nn


def find_factory(factory: str) -> Any:
    """The function that `package.module:function` names.

    Raises:
        ModelError: it can't be imported, or is no function.
    """
    module_name, _, function_name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise ModelError(
            f"factory {factory!r} cannot be imported ({error}); is its folder on PYTHONPATH, on every machine?"
        ) from None
    except AttributeError:
        raise ModelError(f"factory {factory!r}: module {module_name!r} has no {function_name!r}") from None
    if not callable(function):
        raise ModelError(f"factory {factory!r} is no function")
    return function


def _call_factory(factory: str) -> nn.Module:
    import torch

    factory_function = find_factory(factory)
    # A factory may leave weights that are never used as they were initialised: the same ones in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory_function()
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"factory {factory!r} returned {type(model).__name__}, not a torch module")
    return model
