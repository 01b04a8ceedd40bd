"""Thresholds and figures of tags against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fmwsss.core.tags.threshold import NUM_BINS, average_precision, dataset_threshold, quality, tagged

SCORES = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 5)), elements=st.floats(0, 1))


def naive_otsu(values: list[float]) -> float:
    """The end of the bin that separates two groups of greatest variance between them; the first such."""
    low, high = min(values), max(values)
    counts, edges = np.histogram(values, NUM_BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    best, found = -1.0, high
    for end in range(1, NUM_BINS):
        left, right = counts[:end].sum(), counts[end:].sum()
        between = 0.0
        if left and right:
            mean_left = sum(counts[i] * centres[i] for i in range(end)) / left
            mean_right = sum(counts[i] * centres[i] for i in range(end, NUM_BINS)) / right
            between = left * right * (mean_left - mean_right) ** 2
        if between > best * (1 + 1e-9):
            best, found = between, edges[end]
    return float(found)


@given(SCORES)
def test_the_threshold_is_that_of_a_loop_over_bins(scores: np.ndarray) -> None:
    roots = np.sqrt(scores).ravel()
    if roots.max() - roots.min() < 1e-6:
        return
    expected, found = naive_otsu(roots.tolist()) ** 2, dataset_threshold(scores)
    # Bins between two groups of equal variance are as good as each other.
    same = {tuple((roots > math.sqrt(value)).tolist()) for value in (expected, found)}
    assert found == pytest.approx(expected) or len(same) == 1


def test_two_groups_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.uniform(0, 0.05, 900), generator.uniform(0.5, 0.9, 100)]).reshape(100, 10)
    assert (scores > dataset_threshold(scores)).sum() == 100
    assert dataset_threshold(np.full((3, 2), 0.25)) == pytest.approx(0.25)


def test_an_image_has_its_best_class_where_it_must_have_one() -> None:
    scores = np.array([0.1, 0.3, 0.2])
    assert tagged(scores, 0.15).tolist() == [False, True, True]
    assert tagged(scores, 0.9).tolist() == [False, True, False]
    assert not tagged(scores, 0.9, at_least_one=False).any()


def test_figures_are_those_of_loops() -> None:
    generator = np.random.default_rng(1)
    scores, shown = generator.random((30, 4)), generator.random((30, 4)) < 0.3
    shown[:, 3] = False
    for column in range(3):
        order = sorted(range(30), key=lambda row: -scores[row, column])
        hits, total = 0, 0.0
        for rank, row in enumerate(order, start=1):
            if shown[row, column]:
                hits += 1
                total += hits / rank
        assert average_precision(scores[:, column], shown[:, column]) == pytest.approx(total / hits)
    assert math.isnan(average_precision(scores[:, 3], shown[:, 3]))
    tags = [np.flatnonzero(row > 0.5).tolist() for row in scores]
    told = quality(scores, tags, shown)
    hits = sum(bool(shown[row, column]) for row, own in enumerate(tags) for column in own)
    assert told["precision"] == pytest.approx(hits / sum(map(len, tags)))
    assert told["recall"] == pytest.approx(hits / shown.sum())
    assert told["map"] == pytest.approx(np.mean([average_precision(scores[:, c], shown[:, c]) for c in range(3)]))
