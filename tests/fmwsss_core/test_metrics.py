"""Mean IoU against loops over pixels and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from fmwsss.core.metrics import boundary_counts, boundary_iou, confusion_matrix, iou_per_class, mean_iou, pixel_accuracy
from tests.references import metrics as reference

VALUES = st.sampled_from([0, 1, 2, 3, 255])


@st.composite
def label_maps(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    return draw(hnp.arrays(np.uint8, shape, elements=VALUES)), draw(hnp.arrays(np.uint8, shape, elements=VALUES))


@given(st.lists(label_maps(), min_size=1, max_size=3))
def test_iou_over_a_list_is_the_naive_one(pairs: list[tuple[np.ndarray, np.ndarray]]):
    confusion = np.sum([confusion_matrix(labels, truth, 4) for labels, truth in pairs], axis=0)
    expected = reference.iou_per_class(pairs, 4)
    np.testing.assert_allclose(iou_per_class(confusion), expected)
    present = [value for value in expected if not math.isnan(value)]
    assert mean_iou(confusion) == pytest.approx(np.mean(present) if present else math.nan, nan_ok=True)


@given(label_maps())
def test_every_judged_pixel_is_counted_once(pair: tuple[np.ndarray, np.ndarray]):
    labels, truth = pair
    confusion = confusion_matrix(labels, truth, 4)
    assert confusion.sum() == (truth != 255).sum()
    assert confusion[:, -1].sum() == ((truth != 255) & (labels == 255)).sum()


def test_agrees_with_torchmetrics():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 21, (40, 50), dtype=np.uint8)
    labels = np.where(generator.random((40, 50)) < 0.6, truth, generator.integers(0, 21, (40, 50))).astype(np.uint8)
    truth[:5] = 255
    metric = MulticlassJaccardIndex(21, ignore_index=255, average="none")
    theirs = metric(torch.as_tensor(labels).long(), torch.as_tensor(truth).long())
    np.testing.assert_allclose(iou_per_class(confusion_matrix(labels, truth, 21)), theirs.numpy(), rtol=1e-6)


def test_writing_255_never_raises_the_score():
    truth = np.array([[0, 0, 1, 1]], dtype=np.uint8)
    wrong = iou_per_class(confusion_matrix(np.array([[0, 0, 1, 0]], dtype=np.uint8), truth, 2))
    undecided = iou_per_class(confusion_matrix(np.array([[0, 0, 1, 255]], dtype=np.uint8), truth, 2))
    np.testing.assert_allclose(wrong, [2 / 3, 1 / 2])
    np.testing.assert_allclose(undecided, [1, 1 / 2])


def test_nothing_in_the_ground_truth_gives_nan():
    nothing = np.full((2, 2), 255, dtype=np.uint8)
    assert math.isnan(mean_iou(confusion_matrix(np.zeros((2, 2), np.uint8), nothing, 3)))


def test_mistakes_are_named():
    zeros = np.zeros((2, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion_matrix(zeros, zeros.T, 2)
    with pytest.raises(ValueError, match=r"Labels: class 7 is not one of 0 to 1"):
        confusion_matrix(zeros + np.uint8(7), zeros, 2)
    with pytest.raises(ValueError, match=r"The ground truth: class 2 "):
        confusion_matrix(zeros, zeros + np.uint8(2), 2)


@given(label_maps())
def test_boundaries_are_the_naive_ones(pair: tuple[np.ndarray, np.ndarray]):
    labels, truth = pair
    np.testing.assert_array_equal(boundary_counts(labels, truth, 4), reference.boundary_counts(labels, truth, 4, 1))


def test_boundaries_of_a_larger_image_are_the_naive_ones():
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 3, (5, 6)).astype(np.uint8)
    truth = coarse.repeat(20, 0).repeat(25, 1)
    labels = np.roll(truth, 2, axis=1)
    truth[40:60] = 255
    depth_px = round(0.02 * float(np.hypot(*truth.shape)))
    assert depth_px == 4
    counts = boundary_counts(labels, truth, 3)
    np.testing.assert_array_equal(counts, reference.boundary_counts(labels, truth, 3, depth_px))
    assert boundary_iou(counts) < mean_iou(confusion_matrix(labels, truth, 3))
    assert boundary_iou(boundary_counts(truth, truth, 3)) == 1.0


def test_pixel_accuracy_is_that_of_torchmetrics():
    generator = np.random.default_rng(2)
    truth = generator.integers(0, 5, (30, 40), dtype=np.uint8)
    labels = np.where(generator.random((30, 40)) < 0.7, truth, generator.integers(0, 5, (30, 40))).astype(np.uint8)
    truth[:, :7] = 255
    metric = MulticlassAccuracy(5, ignore_index=255, average="micro")
    theirs = metric(torch.as_tensor(labels).long(), torch.as_tensor(truth).long())
    assert pixel_accuracy(confusion_matrix(labels, truth, 5)) == pytest.approx(float(theirs), rel=1e-6)
    assert math.isnan(pixel_accuracy(confusion_matrix(labels[:, :7], truth[:, :7], 5)))
