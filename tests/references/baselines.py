"""Dense CRF and SEPL voting by their definitions: all pairs of pixels, masks as sets."""

from __future__ import annotations

import numpy as np


def dense_crf(image: np.ndarray, probabilities: np.ndarray, settings) -> np.ndarray:
    num_labels, height, width = probabilities.shape
    pixels = list(np.ndindex(height, width))
    kernels = []
    for weight, deviation_px, deviation_rgb in (
        (settings.smooth_weight, settings.smooth_px, None),
        (settings.bilateral_weight, settings.bilateral_px, settings.bilateral_rgb),
    ):
        kernel = np.zeros((len(pixels), len(pixels)))
        for i, first in enumerate(pixels):
            for j, second in enumerate(pixels):
                distance = ((np.array(first) - second) ** 2).sum() / deviation_px**2
                if deviation_rgb:
                    distance += ((image[first].astype(float) - image[second]) ** 2).sum() / deviation_rgb**2
                kernel[i, j] = np.exp(-distance / 2)
        rows = kernel.sum(axis=1)
        kernels.append(weight * kernel / np.sqrt(rows[:, None] * rows[None]))
    unary = probabilities.reshape(num_labels, -1).T.astype(float)
    marginals = unary / unary.sum(axis=1, keepdims=True)
    for _ in range(settings.num_iterations):
        marginals = unary * np.exp(sum(kernel @ marginals for kernel in kernels))
        marginals /= marginals.sum(axis=1, keepdims=True)
    return marginals.T.reshape(num_labels, height, width)


def vote(masks: np.ndarray, labels: np.ndarray, class_indices: list[int]) -> np.ndarray:
    sets = [set(zip(*np.nonzero(mask), strict=True)) for mask in masks]
    covered = set().union(*sets)
    voted, used = np.zeros_like(labels), set()
    for class_index in sorted(class_indices):
        region = set(zip(*np.nonzero(labels == class_index), strict=True))
        chosen = region - covered
        for number, mask in enumerate(sets):
            if number in used:
                continue
            shared = len(mask & region)
            if shared > 0.5 * len(mask) or (region and shared >= 0.85 * len(region)):
                used.add(number)
                chosen |= mask
        for position in chosen:
            voted[position] = class_index
    return voted
