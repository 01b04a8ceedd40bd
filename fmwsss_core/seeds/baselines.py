"""What superpixel seeding is compared with: a dense CRF on class maps, and SEPL voting (method M5.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from fmwsss.core.resize import upsample
from fmwsss.core.seeds.dense_crf import TINY, dense_crf
from fmwsss.core.seeds.sams import Seed, cam_probabilities, label_map_from_cam, margins_of_cams, missing_classes
from fmwsss.core.superpixels.masks import Superpixels, covered, pooled_means


def threshold_seed(
    superpixels: Superpixels,
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    alpha: float,
) -> Seed:
    """The maps alone, cut at (1 - max_c CAM^c)^alpha; confidence is the distance of a pixel's two best scores.

    Arguments and errors as those of `seed_image`; maps are already scaled to 0..1. Superpixels count for `coverage`
    only.

    Args:
        superpixels: of one image.
        cams: maps already scaled to 0..1, one for each present class, on the patch grid.
        class_indices: class index (1 to 254) of each map.
        alpha: power of the background's score, larger than 0.

    Returns:
        Labels of the image's size; scores are left out.
    """
    size = superpixels.height_px, superpixels.width_px
    labels = label_map_from_cam(cams, class_indices, *size, alpha)
    return _without_scores(superpixels, labels, margins_of_cams(cams, *size, alpha), class_indices)


def voting_seed(
    superpixels: Superpixels,
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    alpha: float,
) -> Seed:
    """SEPL: `threshold_seed`, whose labels are then put to the vote of the superpixels (`vote`).

    Args:
        superpixels: of one image.
        cams: maps already scaled to 0..1, one for each present class, on the patch grid.
        class_indices: class index (1 to 254) of each map.
        alpha: power of the background's score, larger than 0.

    Returns:
        Labels of the image's size; scores are left out.
    """
    by_maps = threshold_seed(superpixels, cams, class_indices, alpha)
    labels = vote(superpixels, by_maps.labels, class_indices)
    return _without_scores(superpixels, labels, by_maps.confidence, class_indices)


def crf_seed(
    image: UInt8[np.ndarray, "height width 3"],
    superpixels: Superpixels,
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    alpha: float,
) -> Seed:
    """CLIP-ES: a dense CRF on background and maps; confidence is the largest marginal (CLIP-ES ignores below .95).

    Args:
        image: RGB.
        superpixels: of one image.
        cams: maps already scaled to 0..1, one for each present class, on the patch grid.
        class_indices: class index (1 to 254) of each map.
        alpha: power of the background's score, larger than 0.

    Returns:
        Labels of the image's size; scores are left out.
    """
    scores = cam_probabilities(upsample(cams, superpixels.height_px, superpixels.width_px), alpha)
    marginals = dense_crf(image, scores / np.maximum(scores.sum(axis=0), TINY))
    labels = np.array([0, *class_indices], dtype=np.uint8)[marginals.argmax(axis=0)]
    return _without_scores(superpixels, labels, marginals.max(axis=0), class_indices)


def _without_scores(
    superpixels: Superpixels,
    labels: UInt8[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"],
    class_indices: Sequence[int],
) -> Seed:
    """A seed that was not made superpixel by superpixel."""
    no_class, no_scores = np.zeros(0, np.int16), np.zeros((0, 1 + len(class_indices)), np.float32)
    missing = missing_classes(labels, class_indices)
    return Seed(labels, no_class, no_scores, confidence, float(covered(superpixels).mean()), missing)


def vote(
    superpixels: Superpixels, labels: UInt8[np.ndarray, "height width"], class_indices: Sequence[int]
) -> UInt8[np.ndarray, "height width"]:
    """SEPL: superpixels join the class of a label map that they lie in, or that lies in them (M5.4).

    For each class c, ascending: every mask m not used yet with |m & c| / |m| > .5 or |m & c| / |c| >= .85 becomes c,
    and so do the pixels of c that no mask covers. Where masks of two classes overlap the later class stays.
    Strictly above .5 as in SEPL; the authors' program takes >= .5.

    Args:
        superpixels: of one image.
        labels: class indices, such as `label_map_from_cam` gives.
        class_indices: the classes to look at; others become background.
    """
    ascending = sorted(class_indices)
    area_px, class_px = superpixels.area_px(), np.bincount(labels.reshape(-1), minlength=256)[ascending]
    regions = ((labels == index).astype(np.float32) for index in ascending)
    shared = np.rint(pooled_means(superpixels, regions) * area_px[:, None])
    joins = (shared > 0.5 * area_px[:, None]) | ((class_px > 0) & (shared >= 0.85 * class_px))
    inside = covered(superpixels)
    voted = np.zeros_like(labels)
    # Each mask once: its first class.
    joins &= np.cumsum(joins, axis=1) == 1
    for column, class_index in enumerate(ascending):
        for index in np.flatnonzero(joins[:, column]).tolist():
            voted[superpixels.mask(index)] = class_index
        voted[(labels == class_index) & ~inside] = class_index
    return voted
