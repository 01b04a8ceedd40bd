"""The text tower of a training replayed as one CUDA graph: its kernels are small, and launching them takes longer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmwsss.core.prompts.learner import PromptLearner

logger = logging.getLogger("fmwsss")
Texts = tuple[Tensor, Tensor]


def text_embedder(learner: PromptLearner, is_half: bool) -> Callable[[], Texts]:
    """What gives the text embeddings of a learner, (classes, embed) and (backgrounds, embed), step after step.

    On a GPU the tower forwards and backwards are captured once and replayed: the same kernels on the same numbers, so
    the embeddings and the gradient are those of `learner()`; compared once, here, and where they differ or nothing can
    be captured the tower is called as it is. What a call returns is overwritten by the next one, and `backward` goes
    through it once.

    Args:
        learner: whose contexts are trained. They may be changed in place, not replaced.
        is_half: whether the tower computes in bfloat16.
    """
    device_type = learner.context.device.type

    def embed(context: Tensor) -> Texts:
        with torch.autocast(device_type, torch.bfloat16, enabled=is_half, cache_enabled=device_type != "cuda"):
            return learner.embeddings_of(context)

    if device_type != "cuda":
        return lambda: embed(learner.context)
    try:
        with torch.autocast(device_type, enabled=False, cache_enabled=False):
            example = learner.context.detach().clone().requires_grad_()
            replay: Any = torch.cuda.make_graphed_callables(embed, (example,))
    except RuntimeError as error:
        logger.warning("the text tower can't be captured as a CUDA graph and runs step by step: %s", error)
        return lambda: embed(learner.context)
    if not _gives_the_same(replay, embed, learner.context.detach()):
        logger.warning("the text tower's CUDA graph does not give what the tower gives; it runs step by step")
        return lambda: embed(learner.context)
    return lambda: replay(learner.context)


def _gives_the_same(one: Callable[[Tensor], Texts], other: Callable[[Tensor], Texts], context: Tensor) -> bool:
    """Whether two ways have the same embeddings and gradient, of contexts that neither was made with."""
    found = []
    for embed in (one, other):
        moved = (context + 0.01).requires_grad_()
        texts = embed(moved)
        weights = [torch.linspace(-1, 1, own.numel(), device=own.device).view_as(own) for own in texts]
        gradient = torch.autograd.grad(texts, moved, weights)[0]
        found.append([*(own.detach().clone() for own in texts), gradient.clone()])
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found, strict=True))
