"""Mask2Former's losses against sums over every pixel, and the pixels of 255 that must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fmwsss.core.segmenter import mask_criterion
from fmwsss.core.segmenter.mask_criterion import (
    AT_ONCE,
    CriterionSettings,
    classes_in,
    count_targets,
    make_targets,
    mask2former_losses,
    sample_logits,
)
from tests.references import mask_criterion as one_by_one
from tests.references import segmenter as reference

SIDE, NUM_QUERIES, NUM_CLASSES = 8, 5, 4
# Points that are all random estimate means over pixels without bias; the dice sums grow with their number.
UNIFORM = CriterionSettings(num_points=20000, oversample=1.0, importance=0.0)


def scene(seed: int, layers: int = 1, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(layers, batch, NUM_QUERIES, NUM_CLASSES + 1, generator=generator)
    mask_logits = 2 * torch.randn(layers, batch, NUM_QUERIES, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, 3, (batch, SIDE, SIDE), generator=generator).to(torch.uint8)
    labels[:, :, 5:] = 255
    return class_logits, mask_logits, labels


def losses(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    settings: CriterionSettings,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    targets = make_targets(labels, weights)
    seeds = range(len(labels))
    return mask2former_losses(class_logits, mask_logits, targets, count_targets(targets.classes), [*seeds], settings)


def test_agrees_with_sums_over_every_pixel():
    # Logits that are constant over cells of 16 x 16: then a point's value is that of its cell nearly everywhere.
    class_logits, mask_logits, labels = scene(0)
    fine = mask_logits.repeat_interleave(16, 3).repeat_interleave(16, 4)
    own = losses(class_logits, fine, labels, UNIFORM)
    # The reference's dice sums over pixels: repeat them until there are as many as points.
    times = round((UNIFORM.num_points / SIDE**2) ** 0.5)
    cells = mask_logits[0, 0].repeat_interleave(times, 1).repeat_interleave(times, 2).numpy()
    pixels = labels[0].repeat_interleave(times, 0).repeat_interleave(times, 1).numpy()
    theirs = reference.losses(class_logits[0, 0].double().numpy(), cells.astype(np.float64), pixels)
    for name, value in theirs.items():
        assert float(own[name]) == pytest.approx(value, rel=0.02), name


@pytest.mark.parametrize("at_once", [AT_ONCE, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_is_its_images_one_by_one(weighted: bool, at_once: int, monkeypatch: pytest.MonkeyPatch):
    """The same points, the same matches: losses and gradients to the rounding of sums in another order."""
    monkeypatch.setattr("fmwsss.core.segmenter.mask_criterion.AT_ONCE", at_once)
    class_logits, mask_logits, labels = scene(7, layers=3, batch=5)
    # One, two and three classes, with and without ignored pixels, and one image without anything.
    labels[0] = 2
    labels[1, :, 5:] = 1
    labels[3] = 255
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(8)) if weighted else None
    if weights is not None:
        weights[4, labels[4] == 1] = 0
    settings, seeds = CriterionSettings(num_points=700), [3, 1, 4, 1, 5]
    found = []
    for module in (mask_criterion, one_by_one):
        leaves = [class_logits.clone().requires_grad_(), mask_logits.clone().requires_grad_()]
        targets = module.make_targets(labels, weights)
        totals = count_targets(classes_in(labels, weights))
        parts = module.mask2former_losses(*leaves, targets, totals, seeds, settings)
        torch.stack([*parts.values()]).sum().backward()
        found.append((parts, [leaf.grad for leaf in leaves]))
    (ours, our_gradients), (theirs, their_gradients) = found
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    for own, other in zip(our_gradients, their_gradients, strict=True):
        assert other is not None
        assert other.abs().max() > 0
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


def test_a_pixel_of_255_has_no_gradient():
    class_logits, mask_logits, labels = scene(1, layers=2, batch=2)
    mask_logits.requires_grad_()
    parts = losses(class_logits, mask_logits, labels, CriterionSettings(num_points=3000))
    torch.stack(list(parts.values())).sum().backward()
    assert mask_logits.grad is not None
    # Column 5 lies between labelled and ignored pixels: points to its left read it by interpolation.
    assert torch.all(mask_logits.grad[..., 6:] == 0)
    matched = mask_logits.grad.abs().sum((-2, -1)) > 0
    assert torch.equal(matched.sum(-1), torch.full((2, 2), 3)), "each class has one query in each layer and image"


def test_what_stands_on_ignored_pixels_changes_no_mask_loss():
    class_logits, mask_logits, labels = scene(2)
    other = mask_logits.clone()
    other[..., 6:] = -other[..., 6:] * 3
    settings = CriterionSettings(num_points=3000)
    first, second = (losses(class_logits, value, labels, settings) for value in (mask_logits, other))
    assert torch.equal(first["mask"], second["mask"])
    assert torch.equal(first["dice"], second["dice"])


def test_a_query_on_ignored_pixels_is_not_told_that_it_sees_nothing():
    class_logits, mask_logits, labels = scene(3)
    settings = CriterionSettings(num_points=2000)
    mask_logits[0, 0, 4] = -20.0
    mask_logits[0, 0, 4, :, 6:] = 20.0
    class_logits = class_logits.requires_grad_()
    losses(class_logits, mask_logits, labels, settings)["class"].backward()
    assert class_logits.grad is not None
    ignored, others = class_logits.grad[0, 0, 4], class_logits.grad[0, 0, :4]
    assert ignored.abs().max() < 1e-6
    assert torch.all(others.abs().max(-1).values > 1e-3)


def test_an_image_of_255_alone_contributes_nothing():
    class_logits, mask_logits, labels = scene(4, batch=2)
    labels[1] = 255
    settings = CriterionSettings(num_points=500)
    both = losses(class_logits, mask_logits, labels, settings)
    one = losses(class_logits[:, :1], mask_logits[:, :1], labels[:1], settings)
    for name, value in one.items():
        assert torch.equal(both[name], value)


def test_shares_of_a_batch_add_up_to_the_batch():
    class_logits, mask_logits, labels = scene(5, layers=2, batch=4)
    settings = CriterionSettings(num_points=500)
    whole = losses(class_logits, mask_logits, labels, settings)
    totals = count_targets(classes_in(labels, None))
    shares = [
        mask2former_losses(
            class_logits[:, part], mask_logits[:, part], make_targets(labels[part], None), totals, seeds, settings
        )
        for part, seeds in ((slice(0, 1), [0]), (slice(1, 4), [1, 2, 3]))
    ]
    for name, value in whole.items():
        assert float(value) == pytest.approx(sum(float(share[name]) for share in shares), rel=1e-5)


def test_weights_of_one_and_zero_are_labels_and_255():
    class_logits, mask_logits, labels = scene(6)
    settings = CriterionSettings(num_points=800)
    marked = labels.clone()
    marked[:, :2] = 255
    weights = torch.ones(labels.shape)
    weights[:, :2] = 0
    for name, value in losses(class_logits, mask_logits, marked, settings).items():
        assert torch.equal(losses(class_logits, mask_logits, labels, settings, weights)[name], value)


def test_points_are_read_between_cells_as_interpolation_reads_them():
    grid = torch.arange(12.0).reshape(1, 1, 3, 4)
    centres = torch.tensor([[[0.125, 1 / 6], [0.875, 5 / 6], [0.25, 1 / 6]]])
    assert sample_logits(grid, centres).flatten().tolist() == pytest.approx([0.0, 11.0, 0.5], abs=1e-5)
