"""Greedy suppression of boxes, in numpy: the same boxes as torchvision's `nms`, on workers without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def box_nms(
    boxes: Int[np.ndarray, "boxes 4"], score: Float[np.ndarray, " boxes"], threshold: float
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes left, best score first, equal scores in the order given.

    Args:
        boxes: left, top, right, bottom. As in segment-anything they are inclusive pixels, and areas are those of the
            corners all the same: a mask one pixel wide has a box of area 0, which suppresses nothing.
        score: higher goes first.
        threshold: a box whose IoU with a kept one is larger goes.
    """
    order = np.argsort(-score, kind="stable")
    left, top, right, bottom = boxes[order].astype(np.float32).T
    area = (right - left) * (bottom - top)
    alive = np.arange(len(order))
    kept = []
    while len(alive) > 0:
        best, alive = alive[0], alive[1:]
        kept.append(best)
        width = np.minimum(right[alive], right[best]) - np.maximum(left[alive], left[best])
        height = np.minimum(bottom[alive], bottom[best]) - np.maximum(top[alive], top[best])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[best] + area[alive] - shared
        # Two boxes of area 0 have no IoU (0 / 0), and stay.
        iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        alive = alive[iou.astype(np.float64) <= threshold]
    return order[kept]
