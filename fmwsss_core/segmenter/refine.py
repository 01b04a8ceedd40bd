"""What a segmenter says, refined: by superpixels that are given classes and painted (method M5.3), or by a dense CRF.

Needs no torch: it runs on CPU workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, UInt8

from fmwsss.core.errors import InputError
from fmwsss.core.resize import upsample
from fmwsss.core.seeds.best_two import BestTwo
from fmwsss.core.seeds.dense_crf import dense_crf
from fmwsss.core.seeds.sams import Seed, class_scores, margin, missing_classes, paint
from fmwsss.core.superpixels.masks import Superpixels, pooled_means

Uncovered = Literal["segmenter", "background"]


def refine_labels(
    superpixels: Superpixels,
    probabilities: Float32[np.ndarray, "background_and_classes grid_height grid_width"],
    class_indices: Sequence[int],
    labels: UInt8[np.ndarray, "height width"],
    alpha: float,
    cams: Float32[np.ndarray, "mapped cam_height cam_width"] | None = None,
    mapped: Sequence[int] = (),
    cam_weight: float = 0.0,
    uncovered: Uncovered = "segmenter",
) -> Seed:
    """Labels whose outlines are those of the superpixels.

    The score of a class is its mean probability inside a superpixel, without the min-max of seeding; that of the
    background is its mean to the power `alpha`. The best score gives the superpixel its class, and they are painted as
    in seeding, a higher level over a lower one. Pixels in no superpixel keep what the segmenter said, unless
    `uncovered` says otherwise (seeding, which has nothing better, calls them background).

    With class maps of CLIP for two classes or more (ours), the probabilities p_c of these classes inside a superpixel,
    whose sum is P, become

        P ((1 - w) p_c / P + w S^c / sum_k S^k),    S of eq. 8:

    a convex combination that preserves P. The background and classes without a map are unchanged; so are all classes
    where every S is 0.

    Args:
        superpixels: of the image.
        probabilities: of the background (first) and of each of `class_indices`, on a grid over the image.
        class_indices: the classes that the segmenter predicts somewhere in the image (1 to 254).
        labels: what the segmenter says at each pixel.
        alpha: exponent of the background's probability, > 0; the paper's program has 3.
        cams: class activation maps of some of `class_indices`, on a grid over the image.
        mapped: which.
        cam_weight: w, 0 to 1.
        uncovered: what pixels in no superpixel become: what the segmenter said (ours), or background (the authors).

    Raises:
        ValueError: alpha is not positive, or there is not one map for the background and each class, or not one class
            activation map for each of `mapped`.
    """
    if not alpha > 0:
        raise InputError(f"alpha must be larger than 0, got {alpha}.")
    if len(probabilities) != 1 + len(class_indices):
        raise InputError(f"There are {len(probabilities)} maps for the background and {len(class_indices)} classes.")
    num_cams = 0 if cams is None else len(cams)
    if num_cams != len(mapped) or not set(mapped) <= set(class_indices):
        raise InputError(f"There are {num_cams} class activation maps for {list(mapped)} of {list(class_indices)}.")
    size = superpixels.height_px, superpixels.width_px
    best = BestTwo(size[0] * size[1])

    def enlarged() -> Iterator[Float32[np.ndarray, "height width"]]:
        for own in probabilities:
            values = upsample(own[None], *size)[0]
            best.add(values.T.reshape(-1))
            yield values

    means = pooled_means(superpixels, enlarged()).astype(np.float32)
    if cams is not None and num_cams > 1 and cam_weight > 0:
        columns = [1 + list(class_indices).index(index) for index in mapped]
        means[:, columns] = _shared_out(means[:, columns], class_scores(superpixels, cams), cam_weight)
    scores = np.concatenate([means[:, :1] ** np.float32(alpha), means[:, 1:]], axis=1)
    classes = np.array([0, *class_indices], dtype=np.int16)
    painter = paint(superpixels, scores.max(axis=1, initial=0))
    covered = painter >= 0
    superpixel_class = classes[scores.argmax(axis=1)]
    own_margin = best.lead().reshape(size[::-1]).T
    if uncovered == "background":
        labels = np.zeros_like(labels)
    if len(superpixels) > 0:
        painted = np.where(covered, superpixel_class[painter], labels).astype(np.uint8)
        confidence = np.where(covered, margin(scores.T)[painter], own_margin)
    else:
        painted, confidence = labels.copy(), own_margin
    return Seed(
        labels=painted,
        superpixel_class=superpixel_class,
        scores=scores,
        confidence=confidence.astype(np.float32),
        coverage=float(covered.mean()),
        missing=missing_classes(painted, class_indices),
    )


def _shared_out(
    means: Float32[np.ndarray, "superpixels classes"], support: Float[np.ndarray, "superpixels classes"], weight: float
) -> Float[np.ndarray, "superpixels classes"]:
    sums, all_support = means.sum(axis=1, keepdims=True), support.sum(axis=1, keepdims=True)
    supported = sums * support / np.where(all_support > 0, all_support, 1)
    return np.where(all_support > 0, (1 - weight) * means + weight * supported, means)


def refine_by_crf(
    image: UInt8[np.ndarray, "height width 3"],
    probabilities: Float32[np.ndarray, "background_and_classes grid_height grid_width"],
    class_indices: Sequence[int],
) -> tuple[UInt8[np.ndarray, "height width"], Float32[np.ndarray, "height width"]]:
    """Labels of a dense CRF on the probabilities, and the marginal of each pixel's label (method M5.4).

    Arguments as those of `refine_labels`.

    Args:
        image: RGB.
        probabilities: of background and classes, summing to 1.
        class_indices: class index (1 to 254) of each map after the first.

    Returns:
        Class indices, and a confidence of 0 to 1.
    """
    marginals = dense_crf(image, upsample(probabilities, *image.shape[:2]))
    return np.array([0, *class_indices], dtype=np.uint8)[marginals.argmax(axis=0)], marginals.max(axis=0)
