"""Mask2Former's losses of one decoder layer on one image, over every pixel: what sampling points estimates."""

from __future__ import annotations

import itertools
import math

import numpy as np


def match(class_logits: np.ndarray, mask_logits: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Class -> query of the least total cost among all assignments, tried one by one; 255 counts nowhere."""
    classes = [int(c) for c in np.unique(labels) if c != 255]
    costs = {}
    for query in range(len(class_logits)):
        shares = np.exp(class_logits[query]) / np.exp(class_logits[query]).sum()
        for c in classes:
            bce, dice = mask_costs(mask_logits[query], labels, c)
            costs[query, c] = -2 * shares[c] + 5 * bce + 5 * dice
    best = min(
        itertools.permutations(range(len(class_logits)), len(classes)),
        key=lambda queries: sum(costs[query, c] for query, c in zip(queries, classes, strict=True)),
    )
    return dict(zip(classes, best, strict=True))


def mask_costs(logits: np.ndarray, labels: np.ndarray, wanted: int) -> tuple[float, float]:
    """Mean binary cross entropy and dice over pixels that are not 255."""
    entropy, both, said, true, count = 0.0, 0.0, 0.0, 0.0, 0
    for logit, label in zip(logits.flat, labels.flat, strict=True):
        if label == 255:
            continue
        share = 1 / (1 + math.exp(-logit))
        target = float(label == wanted)
        entropy -= target * math.log(share) + (1 - target) * math.log(1 - share)
        both, said, true, count = both + share * target, said + share, true + target, count + 1
    return entropy / count, 1 - (2 * both + 1) / (said + true + 1)


def losses(class_logits: np.ndarray, mask_logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The three weighted losses; an unmatched query counts by the share of its mask on pixels that are not 255."""
    matched = match(class_logits, mask_logits, labels)
    nothing = class_logits.shape[1] - 1
    entropy, total = 0.0, 0.0
    for query, logits in enumerate(class_logits):
        own = [c for c, chosen in matched.items() if chosen == query]
        shares = 1 / (1 + np.exp(-mask_logits[query]))
        weight = 1.0 if own else 0.1 * shares[labels != 255].sum() / shares.sum()
        entropy += weight * (math.log(np.exp(logits).sum()) - logits[own[0] if own else nothing])
        total += 1.0 if own else 0.1
    costs = [mask_costs(mask_logits[query], labels, c) for c, query in matched.items()]
    return {
        "class": 2 * entropy / total,
        "mask": 5 * sum(bce for bce, _ in costs) / len(costs),
        "dice": 5 * sum(dice for _, dice in costs) / len(costs),
    }


def refined_labels(
    masks: np.ndarray, level: list[int], maps: np.ndarray, classes: tuple[int, ...], said: np.ndarray, alpha: float,
    support: np.ndarray | None = None, weight: float = 0.0, uncovered: str = "segmenter",
) -> np.ndarray:  # fmt: skip
    """Method M5.3, mask by mask: mean probabilities, background to the power alpha, painted upwards.

    With `support`, scores of the classes in each mask, these have a say in the classes' shares of their sum.
    """
    labels = said.copy() if uncovered == "segmenter" else np.zeros_like(said)
    scored = []
    for index, mask in enumerate(masks):
        means = [float(values[mask].mean()) if mask.any() else 0.0 for values in maps.astype(np.float64)]
        if support is not None and support[index].sum() > 0:
            total = sum(means[1:])
            given = [total * own / support[index].sum() for own in support[index]]
            means[1:] = [(1 - weight) * mean + weight * own for mean, own in zip(means[1:], given, strict=True)]
        scores = [np.float32(np.float32(means[0]) ** np.float32(alpha)), *(np.float32(mean) for mean in means[1:])]
        winner = int(np.argmax(scores))
        scored.append((level[index], float(scores[winner]), -index, (0, *classes)[winner], mask))
    for *_, winner, mask in sorted(scored, key=lambda entry: entry[:3]):
        labels[mask] = winner
    return labels
