"""From scores to tags without any ground truth (method M8.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

NUM_BINS = 256


def dataset_threshold(scores: Float[np.ndarray, "images classes"]) -> float:
    """The score above which a class counts as shown, from the scores of a whole dataset (ours).

    Otsu's threshold of the square roots: most scores are near 0, and a root spreads those of shares evenly.

    Args:
        scores: 0 to 1.

    Returns:
        0 to 1; of scores that are all alike, that score.
    """
    roots = np.sqrt(np.asarray(scores, np.float64)).ravel()
    low, high = roots.min(), roots.max()
    if high == low:
        return float(high**2)
    counts, edges = np.histogram(roots, NUM_BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * centres)
    # Variance between what is below a bin's end and what is above it; the last bin has nothing above it.
    mean_below = sum_below[:-1] / below[:-1]
    mean_above = (sum_below[-1] - sum_below[:-1]) / np.maximum(above[:-1], 1)
    between = below[:-1] * above[:-1] * (mean_below - mean_above) ** 2
    return float(edges[1 + int(np.argmax(between))] ** 2)


def tagged(
    scores: Float[np.ndarray, "classes"], threshold: float, at_least_one: bool = True
) -> Bool[np.ndarray, "classes"]:
    """Which classes an image is taken to show.

    Args:
        scores: of the image.
        threshold: they are to exceed.
        at_least_one: whether an image without such a score shows the class of its highest, as TagCLIP has it.
    """
    found = scores > threshold
    if at_least_one and not found.any():
        found[int(np.argmax(scores))] = True
    return found


def average_precision(scores: Float[np.ndarray, "images"], shown: Bool[np.ndarray, "images"]) -> float:
    """Mean precision at the ranks of the images that show a class; NaN where none does.

    Args:
        scores: of one class.
        shown: ground truth.
    """
    ranked = shown[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean()) if ranked.any() else float("nan")


def quality(
    scores: Float[np.ndarray, "images classes"],
    tags: Sequence[Sequence[int]],
    shown: Bool[np.ndarray, "images classes"],
) -> dict[str, float]:
    """Precision, recall and mean average precision of tags, where labels are known.

    Args:
        scores: of each image and class.
        tags: class indices, from 0, of each image.
        shown: ground truth.

    Returns:
        `precision`, `recall`, `map` (over the classes that occur), each 0 to 1.
    """
    said = np.zeros(shown.shape, bool)
    for row, own in enumerate(tags):
        said[row, list(own)] = True
    hits = int((said & shown).sum())
    by_class = [average_precision(scores[:, column], shown[:, column]) for column in range(shown.shape[1])]
    return {
        "precision": hits / max(1, int(said.sum())),
        "recall": hits / max(1, int(shown.sum())),
        "map": float(np.nanmean(by_class)) if shown.any() else float("nan"),
    }
