"""Schedules, and a few steps of learning on the toy world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fmwsss_core.clip import FrozenClip
from fmwsss_core.learning import learning_rate, make_optimizer, prompt_loss, share_of
from fmwsss_core.prompts import Context, NamePosition, PromptLearner
from fmwsss_core.toy.models import toy_clip
from fmwsss_core.toy.world import TOY, draw_scene


def test_learning_rate_is_constant_then_a_cosine_to_zero() -> None:
    rates = [learning_rate(i, 110, 0.02, 10, 1e-5) for i in range(110)]
    assert rates[:10] == [1e-5] * 10
    assert rates[10] == 0.02
    assert rates[60] == pytest.approx(0.01)
    assert 0 < rates[-1] < 1e-5
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of crops of toy scenes: images, present classes, true labels."""
    drawn = [draw_scene(seed) for seed in range(count)]
    images = torch.stack([torch.from_numpy(scene.image[:96, :96].copy()).permute(2, 0, 1) for scene in drawn])
    labels = torch.stack([torch.from_numpy(scene.truth[:96, :96].astype(np.uint8)) for scene in drawn])
    present = torch.zeros(count, len(TOY.classes), dtype=torch.bool)
    for row, scene in zip(present, drawn, strict=True):
        row[[index - 1 for index in TOY.indices(scene.classes)]] = True
    return images, present, labels


@pytest.mark.parametrize(("context", "position", "weight"), [("unified", "end", 0.0), ("class-specific", "front", 1.0)])
def test_steps_lower_the_loss_and_move_the_contexts_only(
    context: Context, position: NamePosition, weight: float
) -> None:
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context=context, name_position=position, num_context=4, backgrounds="learned", num_backgrounds=5
    )
    frozen = {name: value.clone() for name, value in clip.state_dict().items()}
    images, present, labels = scenes(6)
    optimizer = make_optimizer(learner, 0.02, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(8):
        loss = prompt_loss(clip, learner, images, present, labels if weight else None)
        optimizer.zero_grad()
        total = loss.contrastive + weight * loss.cam
        total.backward()
        optimizer.step()
        losses.append(float(total))
        assert loss.num_pairs == int(present.sum())
        assert (loss.num_pixels > 0) == (weight > 0)
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in clip.state_dict().items())


def test_shares_of_two_halves_make_the_whole() -> None:
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context="unified", name_position="end", num_context=4, backgrounds="named", num_backgrounds=0
    )
    images, present, labels = scenes(5)
    labels[0] = 0  # an image whose label map shows nothing
    labels[1, :40] = 255

    def gradient(parts: list[slice]) -> torch.Tensor:
        losses = [prompt_loss(clip, learner, images[part], present[part], labels[part]) for part in parts]
        pairs, pixels = sum(loss.num_pairs for loss in losses), sum(loss.num_pixels for loss in losses)
        total = sum(
            loss.contrastive * share_of(loss.num_pairs, pairs) + loss.cam * share_of(loss.num_pixels, pixels)
            for loss in losses
        )
        return torch.autograd.grad(total, learner.context)[0]  # type: ignore[arg-type]

    whole = gradient([slice(0, 5)])
    halves = gradient([slice(0, 2), slice(2, 5)])
    assert torch.allclose(whole, halves, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
