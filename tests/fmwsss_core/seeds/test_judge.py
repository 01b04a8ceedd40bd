"""Agreement of configurations, against the mIoU of each pair by hand."""

from __future__ import annotations

import numpy as np

from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.seeds.judge import Agreement


def test_scores_are_means_of_pairs() -> None:
    generator = np.random.default_rng(0)
    images = [[generator.integers(0, 3, (5, 7)).astype(np.uint8) for _ in range(3)] for _ in range(2)]
    agreement = Agreement(3, 3)
    for labels in images:
        agreement.add(labels)
    for number, score in enumerate(agreement.scores()):
        pairs = [
            mean_iou(np.sum([confusion_matrix(labels[number], labels[other], 3) for labels in images], axis=0))
            for other in range(3)
            if other != number
        ]
        assert np.isclose(score, np.mean(pairs))


def test_the_one_nearest_to_the_truth_is_agreed_with_most() -> None:
    """Each makes mistakes of its own, the first the fewest."""
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, (64, 64)).astype(np.uint8)
    labels = []
    for share in (0.05, 0.2, 0.35, 0.5):
        wrong = generator.random(truth.shape) < share
        labels.append(np.where(wrong, generator.integers(0, 4, truth.shape), truth).astype(np.uint8))
    agreement = Agreement(4, 4)
    agreement.add(labels)
    scores = agreement.scores()
    assert list(np.argsort(-scores)) == [0, 1, 2, 3]
