"""The model of foreground superpixels by its equation, one superpixel at a time."""

from __future__ import annotations

import math

import numpy as np


def loss(weight: np.ndarray, bias: float, components: np.ndarray, margins: np.ndarray, penalty: float) -> float:
    total = penalty / 2 * sum(float(value) ** 2 for value in weight)
    for values, margin in zip(components, margins, strict=True):
        logit = sum(float(w) * float(z) for w, z in zip(weight, values, strict=True)) + bias
        target = 1.0 if margin > 0 else 0.0
        total += abs(float(margin)) * (math.log(1 + math.exp(logit)) - target * logit)
    return total


def components(features: np.ndarray, num_components: int) -> np.ndarray:
    """Scaled features in the directions of their largest variance, each of deviation 1, by a plain SVD."""
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = singular > 1e-6 * singular[0]
    return (left * math.sqrt(len(features)))[:, kept][:, :num_components]
