"""Which of several ways to make seeds is the best, without any ground truth: the one that the others agree with (ours).

Ways that differ make different mistakes and find the same objects; so what one of them shares with the rest is more
often right than what it has alone (docs/method.md, M5.6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from fmwsss.core.metrics import confusion_matrix, mean_iou


class Agreement:
    """Counts, image by image, how much the labels of several configurations have in common.

    Args:
        num_configurations: at least two.
        num_classes: background included.
    """

    def __init__(self, num_configurations: int, num_classes: int) -> None:
        shape = (num_configurations, num_configurations, num_classes, num_classes + 1)
        self._counts: Int64[np.ndarray, "found taken classes classes+1"] = np.zeros(shape, np.int64)

    def add(self, labels: Sequence[UInt8[np.ndarray, "height width"]]) -> None:
        """Adds what each configuration says of one image, in their order; 255 where one says nothing."""
        num_classes = self._counts.shape[2]
        for found, own in enumerate(labels):
            for taken, other in enumerate(labels):
                if found != taken:
                    self._counts[found, taken] += confusion_matrix(own, other, num_classes)

    def scores(self) -> Float64[np.ndarray, " configurations"]:
        """Of each configuration, the mean of its mIoU with every other one in the place of the ground truth, 0 to 1."""
        number = len(self._counts)
        return np.array(
            [np.mean([mean_iou(self._counts[i, j]) for j in range(number) if j != i]) for i in range(number)]
        )
