"""The losses against loops, and where they have nothing to say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmwsss.core.prompts.losses import (
    MeanOver,
    binary_cross_entropy,
    cam_activation,
    multi_label_contrastive,
    pixel_cross_entropy,
)
from tests.references import losses as reference

torch.set_num_threads(1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["batch", "image"]))
def test_contrastive_against_a_loop(seed: int, batch: int, classes: int, mean_over: MeanOver):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, dtype=torch.float64, generator=generator) * 5
    logits.requires_grad_()
    present = torch.rand(batch, classes, generator=generator) < 0.5
    loss = multi_label_contrastive(logits, present, mean_over)
    expected = reference.multi_label_contrastive(logits.detach(), present, mean_over)
    assert float(loss.detach()) == pytest.approx(0.0 if expected is None else expected, rel=1e-12, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    silent = ~present.any(dim=1) | present.all(dim=1)
    assert gradient[silent].abs().sum() == 0


def test_contrastive_survives_large_logits():
    logits = torch.tensor([[1000.0, -1000.0, 900.0]], requires_grad=True)
    loss = multi_label_contrastive(logits, torch.tensor([[False, True, False]]))
    assert float(loss.detach()) == 2000.0
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.booleans(), st.sampled_from(["cal", "relative-cal", "ce"]), st.booleans(), st.booleans()
)
def test_losses_on_maps_against_a_loop(seed: int, as_bytes: bool, kind: str, is_rectified: bool, per_image: bool):
    named: dict[str, Any] = {"is_rectified": is_rectified, "mean_over": "image" if per_image else "batch"}
    named = {} if kind == "ce" else {**named, "is_relative": kind == "relative-cal"}
    ours = pixel_cross_entropy if kind == "ce" else cam_activation
    theirs = reference.pixel_cross_entropy if kind == "ce" else reference.cam_activation
    generator = torch.Generator().manual_seed(seed)
    cam = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator) - 0.5
    cam.requires_grad_()
    # Label maps of all kinds: everything, no foreground, nothing known, one class all over.
    kinds = [[0, 1, 2, 3, 255], [0, 255], [255], [2]]
    palettes = [kinds[int(torch.randint(4, (1,), generator=generator))] for _ in range(3)]
    labels = torch.stack([torch.tensor(p)[torch.randint(len(p), (5, 8), generator=generator)] for p in palettes])
    image = torch.tensor([0, 0, 1, 2, 2])
    class_index = torch.tensor([0, 2, 1, 0, 1])
    loss = ours(cam, labels.byte() if as_bytes else labels, image, class_index, **named)
    expected = theirs(cam.detach(), labels, image, class_index, **named)
    assert float(loss.detach()) == pytest.approx(0.0 if expected is None else expected, rel=1e-12, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, cam)
    assert torch.isfinite(gradient).all()


def test_activation_by_hand():
    cam = torch.tensor([[[3.0, -1.0, 2.0, -2.0]]], requires_grad=True)
    labels = torch.tensor([[[1, 1, 0, 255]]])
    loss = cam_activation(cam, labels, torch.tensor([0]), torch.tensor([0]))
    # the class: |3 - 3| + |3 + 1|; the rest: max(2, 0); 255 neither costs nor counts
    assert float(loss.detach()) == pytest.approx((0 + 4 + 2) / 3)
    loss.backward()
    assert cam.grad is not None
    # The maximum is held fixed: it pulls the others up and is not pulled down.
    torch.testing.assert_close(cam.grad[0, 0], torch.tensor([0.0, -1.0, 1.0, 0.0]) / 3)


def test_activation_of_the_paper_by_hand():
    cam = torch.tensor([[[3.0, -1.0, 2.0, -2.0]], [[1.0, 1.0, 4.0, -1.0]], [[2.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[[1, 1, 0, 255]], [[0, 2, 0, 0]]])
    image, class_index = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    loss = cam_activation(cam, labels, image, class_index, is_rectified=True, mean_over="image")
    # First image, two classes: (0 + 3 + 2) and (0 + 1 + 1 + 4) over 2 x 4 pixels; second, one class: 2 + 0 over 1 x 4.
    assert float(loss.detach()) == pytest.approx(((5 + 6) / 8 + 2 / 4) / 2)
    loss.backward()
    assert cam.grad is not None
    # What is negative is cut off: nothing pulls it, not even on its class.
    torch.testing.assert_close(cam.grad[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]) / 16)


def test_activation_lifts_a_negative_class_to_zero():
    cam = torch.full((1, 2, 2), -1.0, requires_grad=True)
    labels = torch.tensor([[[1, 1], [1, 1]]]).byte()
    assert float(cam_activation(cam, labels, torch.tensor([0]), torch.tensor([0])).detach()) == 1.0


@pytest.mark.parametrize("fill", [0, 255])
def test_activation_without_foreground_is_a_connected_zero(fill: int):
    cam = torch.randn(2, 2, 2, requires_grad=True)
    labels = torch.full((1, 4, 4), fill).byte()
    loss = cam_activation(cam, labels, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert cam.grad is not None
    assert cam.grad.abs().max() == 0


def test_activation_without_rows_is_a_connected_zero():
    cam = torch.randn(0, 2, 2, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss = cam_activation(cam, torch.ones(1, 4, 4).byte(), none, none)
    assert float(loss.detach()) == 0.0
    assert loss.requires_grad


def test_binary_cross_entropy_against_a_loop():
    logits = torch.tensor([[2.0, -1.0], [30.0, 0.0]], dtype=torch.float64)
    present = torch.tensor([[True, False], [False, True]])
    expected = reference.binary_cross_entropy(logits, present)
    assert float(binary_cross_entropy(logits, present)) == pytest.approx(expected, rel=1e-12)
