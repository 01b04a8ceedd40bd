"""Schedules, and a few steps of learning on the toy world."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import Context, NamePosition, PromptLearner
from fmwsss.core.prompts.losses import MeanOver
from fmwsss.core.prompts.objective import (
    CamLoss,
    ClassificationLoss,
    PromptLoss,
    learning_rate,
    make_optimizer,
    prompt_loss,
    share_of,
)
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY, draw_scene
from tests.references import losses as losses_reference
from tests.references import softmax_gradcam as reference
from tests.references.clip import embed_activation


def test_learning_rate_is_constant_then_a_cosine_to_zero() -> None:
    rates = [learning_rate(i, 110, 0.02, 10, 1e-5) for i in range(110)]
    assert rates[:10] == [1e-5] * 10
    assert rates[10] == 0.02
    assert rates[60] == pytest.approx(0.01)
    assert 0 < rates[-1] < 1e-5
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def loss_of(
    clip: FrozenClip,
    learner: PromptLearner,
    images: torch.Tensor,
    present: torch.Tensor,
    labels: torch.Tensor | None,
    **losses: Any,
) -> PromptLoss:
    features = clip.encode_image(clip.preprocess(images))
    block = clip.last_block(features.last_block_input)
    foreground, background = learner()
    return prompt_loss(block, features.grid, clip.logit_scale, foreground, background, present, labels, **losses)


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of crops of toy scenes: images, present classes, true labels."""
    drawn = [draw_scene(seed) for seed in range(count)]
    images = torch.stack([torch.from_numpy(scene.image[:96, :96].copy()).permute(2, 0, 1) for scene in drawn])
    labels = torch.stack([torch.from_numpy(scene.truth[:96, :96].astype(np.uint8)) for scene in drawn])
    present = torch.zeros(count, len(TOY.classes), dtype=torch.bool)
    for row, scene in zip(present, drawn, strict=True):
        row[[index - 1 for index in TOY.indices(scene.classes)]] = True
    return images, present, labels


@pytest.mark.parametrize("classification_loss", ["mcl", "bce"])
@pytest.mark.parametrize(
    ("context", "position", "weight", "cam_loss"),
    [("unified", "end", 0.0, "cal"), ("class-specific", "front", 1.0, "cal"), ("unified", "middle", 1.0, "ce")],
)
def test_steps_lower_the_loss_and_move_the_contexts_only(
    context: Context,
    position: NamePosition,
    weight: float,
    cam_loss: CamLoss,
    classification_loss: ClassificationLoss,
) -> None:
    losses = {"classification_loss": classification_loss, "cam_loss": cam_loss}
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context=context, name_position=position, num_context=4, backgrounds="learned", num_backgrounds=5
    )
    frozen = {name: value.clone() for name, value in clip.state_dict().items()}
    images, present, labels = scenes(6)
    optimizer = make_optimizer(learner, 0.02, momentum=0.9, weight_decay=5e-4)
    totals = []
    for _ in range(8):
        loss = loss_of(clip, learner, images, present, labels if weight else None, **losses)
        optimizer.zero_grad()
        total = loss.classification + weight * loss.cam
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
        assert loss.num_classified == int(present.sum()) if classification_loss == "mcl" else present.numel()
        assert (loss.num_mapped > 0) == (weight > 0)
    assert totals[-1] < totals[0]
    assert all(torch.equal(value, frozen[name]) for name, value in clip.state_dict().items())


@pytest.mark.parametrize(
    "losses",
    [
        {"classification_loss": "mcl", "cam_loss": "cal"},
        {"classification_loss": "mcl", "cam_loss": "cal", "cam_map": "rectified", "mean_over": "image"},
        {"classification_loss": "bce", "cam_loss": "ce"},
        {"classification_loss": "bce", "cam_loss": "ce", "mean_over": "image"},
    ],
)
def test_shares_of_two_halves_make_the_whole(losses: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context="unified", name_position="end", num_context=4, backgrounds="named", num_backgrounds=0
    )
    images, present, labels = scenes(5)
    labels[0] = 0  # an image whose label map shows nothing
    labels[1, :40] = 255

    def gradient(parts: list[slice]) -> torch.Tensor:
        found = [loss_of(clip, learner, images[part], present[part], labels[part], **losses) for part in parts]
        counts = torch.tensor([[loss.num_classified, loss.num_mapped] for loss in found]).sum(0)
        total = torch.stack([loss.weighted(1.0, 1.0, *counts)[0] for loss in found]).sum()
        return torch.autograd.grad(total, learner.context)[0]

    whole = gradient([slice(0, 5)])
    halves = gradient([slice(0, 2), slice(2, 5)])
    assert torch.allclose(whole, halves, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.parametrize("mean_over", ["batch", "image"])
def test_each_weight_leaves_its_own_loss_alone(mean_over: MeanOver) -> None:
    """The paper's two sets (M4): weights 1, 0 are MCL alone, 0, 1 CAL alone; against autograd of each (M2.1 a)."""
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip().double(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context="class-specific", name_position="end", num_context=4, backgrounds="named", init_std=0.3
    )
    images, present, labels = scenes(4)
    labels[3] = 0
    cam_map = "rectified" if mean_over == "image" else "raw"
    found = loss_of(clip, learner, images, present, labels, cam_map=cam_map, mean_over=mean_over)
    counts = found.num_classified, found.num_mapped

    foreground, background = learner()
    features = clip.encode_image(clip.preprocess(images))
    rows = reference.softmax_gradcam(clip.model, features.last_block_input, foreground, background, present)
    image, class_index = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    maps = torch.stack([row[2] for row in rows]).reshape(-1, 1, *features.grid)
    up = functional.interpolate(maps, size=(96, 96), mode="bilinear", align_corners=False)[:, 0]
    if mean_over == "image":
        cal = losses_reference.differentiable_cam_activation(up, labels.long(), image, class_index)
    else:
        cal = losses_reference.differentiable_cam_activation_of_batch(up, labels.long(), image, class_index)
    contrastive = []
    for i in range(4):
        last = features.last_block_input[i : i + 1]
        activation = clip.model.visual.transformer.resblocks[-1].ln_1(last)  # type: ignore[union-attr]
        y = clip.model.logit_scale.exp() * foreground @ embed_activation(clip.model, last, activation)[0]
        own = [-y[c] + torch.cat([y[c, None], y[~present[i]]]).logsumexp(0) for c in present[i].nonzero()[:, 0]]
        contrastive.append(own)
    pooled = [torch.stack(own).mean() for own in contrastive]
    pooled = pooled if mean_over == "image" else [cost for own in contrastive for cost in own]
    expected = {(1.0, 0.0): torch.stack(pooled).mean(), (0.0, 1.0): cal}
    for weights, loss in expected.items():
        total = found.weighted(*weights, *counts)[0]
        ours, theirs = (torch.autograd.grad(x, learner.context, retain_graph=True)[0] for x in (total, loss))
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-8, weights
        assert float(total.detach()) == pytest.approx(float(loss.detach()), rel=1e-8)


def test_what_half_precision_costs() -> None:
    """Towers in bfloat16, maps and losses in float32: the step keeps its direction, and the loss two digits."""
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context="class-specific", name_position="end", num_context=4, backgrounds="named", init_std=0.02
    )
    images, present, labels = scenes(6)

    def step(is_half: bool) -> tuple[float, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            features = clip.encode_image(clip.preprocess(images))
            foreground, background = learner()
        assert foreground.dtype == torch.float32
        block = clip.last_block(features.last_block_input.float())
        loss = prompt_loss(block, features.grid, clip.logit_scale, foreground, background, present, labels)
        total = loss.classification + loss.cam
        return float(total.detach()), torch.autograd.grad(total, learner.context)[0].flatten()

    (exact, gradient), (half, rounded) = step(False), step(True)
    cosine = float(torch.nn.functional.cosine_similarity(gradient, rounded, dim=0))
    print("loss", exact, "in half precision", half, "cosine of the gradients", cosine)
    assert half == pytest.approx(exact, rel=0.03)
    assert half != exact
    assert cosine > 0.97


def test_images_of_several_sizes_make_one_batch() -> None:
    """Groups of one size each, put together by their counts, against the oracle image by image, in float64."""
    torch.set_num_threads(1)
    clip = FrozenClip(toy_clip().double(), identity="toy")
    learner = PromptLearner(
        clip, TOY, context="class-specific", name_position="end", num_context=4, backgrounds="named", init_std=0.3
    )
    images, present, labels = scenes(5)
    labels[2, :30] = 255
    windows = [(96, 96), (96, 96), (64, 88), (64, 88), (48, 40)]
    groups = [slice(0, 2), slice(2, 4), slice(4, 5)]

    def cut(values: torch.Tensor, group: slice) -> torch.Tensor:
        height, width = windows[group.start]
        return values[group, ..., :height, :width]

    found = [loss_of(clip, learner, cut(images, g), present[g], cut(labels, g)) for g in groups]
    pairs, pixels = torch.tensor([[loss.num_classified, loss.num_mapped] for loss in found]).sum(0)
    parts = [
        loss.classification * share_of(loss.num_classified, pairs) + loss.cam * share_of(loss.num_mapped, pixels)
        for loss in found
    ]

    foreground, background = learner()
    contrastive, activation, num_pairs, num_pixels = [], [], 0, 0
    for i in range(5):
        one = slice(i, i + 1)
        height, width = windows[i]
        features = clip.encode_image(clip.preprocess(images[one, :, :height, :width]))
        last, label = features.last_block_input, labels[i, :height, :width].long()
        embedding = embed_activation(clip.model, last, clip.model.visual.transformer.resblocks[-1].ln_1(last))[0]  # type: ignore[union-attr]
        y = clip.model.logit_scale.exp() * foreground @ embedding
        for c in present[i].nonzero()[:, 0].tolist():
            contrastive.append(-y[c] + torch.cat([y[c, None], y[~present[i]]]).logsumexp(0))
            num_pairs += 1
        for _, c, cam in reference.softmax_gradcam(clip.model, last, foreground, background, present[one]):
            if not ((label > 0) & (label < 255)).any():
                continue
            up = functional.interpolate(cam.reshape(1, 1, *features.grid), size=label.shape, mode="bilinear")[0, 0]
            own, other = label == c + 1, (label != c + 1) & (label != 255)
            if own.any():
                activation.append((up[own].detach().max().clamp(min=0) - up[own]).abs().sum())
            activation.append(up[other].clamp(min=0).sum())
            num_pixels += int(own.sum() + other.sum())
    expected = torch.stack(contrastive).mean() + torch.stack(activation).sum() / num_pixels
    assert (pairs, pixels) == (num_pairs, num_pixels)
    ours = torch.stack(parts).sum()
    assert float((ours - expected).detach().abs()) < 1e-10
    gradients = [torch.autograd.grad(total, learner.context)[0] for total in (ours, expected)]
    assert float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()) < 1e-10
