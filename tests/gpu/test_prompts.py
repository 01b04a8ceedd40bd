"""The text tower as a training replays it on a GPU; without one the same code runs on the CPU."""

from __future__ import annotations

import pytest
import torch

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.prompts.text_graph import text_embedder
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.vocabularies import VOC12

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("is_half", [False, True])
def test_replayed_embeddings_and_gradients_are_the_plain_ones(is_half: bool) -> None:
    """At several steps, between which the contexts change in place."""
    clip = FrozenClip(toy_clip().eval().requires_grad_(False).to(DEVICE), identity="toy")
    learner = PromptLearner(clip, VOC12, context="unified", name_position="end", backgrounds="named", init_std=0.02)
    embed = text_embedder(learner.to(DEVICE), is_half)
    for step in range(3):
        found = []
        for source in (embed, learner):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=is_half and source is learner):
                foreground, background = source()
            loss = (foreground.float() ** 3).sum() + background.float()[:, step].sum()
            gradient = torch.autograd.grad(loss, learner.context)[0]
            found.append((foreground.detach().clone(), background.detach().clone(), gradient.clone()))
        for own, expected in zip(*found, strict=True):
            torch.testing.assert_close(own, expected)
        with torch.no_grad():
            learner.context -= 0.1 * found[0][2] + 0.01
