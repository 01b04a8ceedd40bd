"""Box suppression against torchvision's, tie for tie."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms

from fmwsss.core.superpixels.box_nms import box_nms


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 3)), max_size=12), st.sampled_from([0.0, 0.25, 0.5]))
def test_kept_boxes_are_torchvisions(rows: list[tuple[int, ...]], threshold: float):
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    boxes = np.concatenate([np.minimum(table[:, :2], table[:, 2:4]), np.maximum(table[:, :2], table[:, 2:4])], axis=1)
    kept = box_nms(boxes, table[:, 4].astype(float), threshold)
    # torchvision's order of equal scores is not promised: ranks have none.
    order = np.argsort(-table[:, 4], kind="stable")
    ranks = torch.arange(len(order), 0, -1, dtype=torch.float32)
    expected = order[nms(torch.tensor(boxes[order], dtype=torch.float32), ranks, threshold).numpy()]
    np.testing.assert_array_equal(kept, expected)


def test_an_iou_at_the_threshold_stays_and_one_above_goes():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1]])
    score = np.array([3.0, 2.0, 1.0])
    np.testing.assert_array_equal(box_nms(boxes, score, 0.5), [0, 1])
    np.testing.assert_array_equal(box_nms(boxes, score, 0.49), [0])


def test_scores_closer_than_float32_keep_their_order():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4]])
    np.testing.assert_array_equal(box_nms(boxes, np.array([1 + 1e-12, 1 + 2e-12]), 0.5), [1])
