"""Ceilings of masks and maps, one superpixel, one threshold and one pixel at a time."""

from __future__ import annotations

import numpy as np


def named_by_truth(masks: np.ndarray, level: np.ndarray, truth: np.ndarray) -> np.ndarray:
    named = []
    for mask in masks:
        inside = [int(value) for value in truth[mask] if value != 255]
        counts = {value: inside.count(value) for value in sorted(set(inside))}
        winner = max(counts, key=lambda value: counts[value], default=0)
        named.append((winner, np.float32(counts[winner] / len(inside)) if inside else np.float32(0)))
    labels = np.zeros(truth.shape, np.uint8)
    for y, x in np.ndindex(*truth.shape):
        best = None
        for row, mask in enumerate(masks):
            if mask[y, x]:
                rank = (level[row], named[row][1], -row)
                if best is None or rank > best:
                    best = rank
                    labels[y, x] = named[row][0]
    return labels


def cut_best(full: np.ndarray, classes: list[int], truth: np.ndarray) -> np.ndarray:
    """`full`: maps at the size of the image."""
    cuts = {}
    for values, index in zip(full, classes, strict=True):
        own, judged = truth == index, truth != 255
        if own.any():
            ious = []
            for step in range(256):
                found = (values >= step / 256) & judged
                ious.append((found & own).sum() / ((found | own) & judged).sum())
            cuts[index] = ious.index(max(ious))
    labels = np.zeros(truth.shape, np.uint8)
    for y, x in np.ndindex(*truth.shape):
        best = -1
        for values, index in zip(full, classes, strict=True):
            if index in cuts:
                excess = min(int(values[y, x] * 256), 255) - cuts[index]
                if excess > best:
                    best, labels[y, x] = excess, index
    return labels
