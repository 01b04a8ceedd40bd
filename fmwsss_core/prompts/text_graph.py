"""The text tower of a training replayed as one CUDA graph: its kernels are small, and launching them takes longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmwsss.core.prompts.learner import PromptLearner

Texts = tuple[Tensor, Tensor]


def text_embedder(learner: PromptLearner, is_half: bool) -> Callable[[], Texts]:
    """What gives the text embeddings of a learner, (classes, embed) and (backgrounds, embed), step after step.

    On a GPU the tower forwards and backwards are captured once and replayed: the same kernels on the same numbers, so
    the embeddings and the gradient are those of `learner()`. What a call returns is overwritten by the next one, and
    `backward` goes through it once.

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
    example = learner.context.detach().clone().requires_grad_()
    replay: Any = torch.cuda.make_graphed_callables(embed, (example,))
    return lambda: replay(learner.context)
