"""From class activation maps and superpixels to a segmentation seed (FMA-WSSS eq. 8-10; method M5.2).

Needs no torch, so that pooling and painting run on CPU workers beside the GPU's forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int16, UInt8

from fmwsss_core.superpixels import Superpixels, pooled_means

# Below this spread (of a map scaled to 0..1) differences are rounding, and min-max would blow them up to 0..1.
_FLAT = 1e-6
_EPSILON = 1e-7


@dataclass(frozen=True, eq=False)
class Seed:
    """The seed of one image.

    Attributes:
        labels: class of each pixel, 0 = background; 255 is never written.
        superpixel_class: class given to each superpixel, in the order of the superpixels.
        scores: score of the background (column 0) and of each present class (in the order given), 0 to 1.
        confidence: how clear the decision at each pixel was, 0 to 1 (see `seed_image`).
        coverage: share of the image's pixels that lie in at least one superpixel.
        missing: present classes (class indices) that got no pixel.
    """

    labels: UInt8[np.ndarray, "height width"]
    superpixel_class: Int16[np.ndarray, " superpixels"]
    scores: Float32[np.ndarray, "superpixels background_and_present"]
    confidence: Float32[np.ndarray, "height width"]
    coverage: float
    missing: tuple[int, ...]


def seed_image(
    superpixels: Superpixels,
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    alpha: float,
) -> Seed:
    """Gives every superpixel a class and paints them.

    1. Each CAM is upsampled to the image, rectified, and scaled to 0..1 over the image's pixels (its scale and offset
       therefore do not matter); a map without contrast says nothing about where its class is and becomes 0.
    2. Its mean inside each superpixel is min-maxed over the superpixels: S^c (eq. 8). Where all means of a class are
       equal (one superpixel, or a spread below 1e-6) min-max would be 0 and the image would become background: there
       S^c is the mean itself.
    3. Background = (1 - max_c S^c)^alpha (eq. 9), class = argmax over background and the present classes (eq. 10).
       Equal scores: background first, then the order of `class_indices`. A class whose map is 0 never wins.
    4. Superpixels are painted upwards by (level, winning score), so a higher level wins, then a higher score; of equal
       ones the superpixel that comes first in `superpixels` wins. A background superpixel erases what lies under it.
       Pixels in no superpixel are background.

    An image without any superpixel is labelled pixel by pixel with the rule of step 3 on the maps of step 1.

    Confidence: the winning score of the painting superpixel minus its second score; outside all superpixels, 1 minus
    the largest map of step 1; without superpixels, the difference of the pixel's own two best scores.

    Args:
        superpixels: of one image of height by width pixels.
        cams: one map for each present class, on the patch grid, raw or normalised.
        class_indices: class index (1 to 254) of each map.
        alpha: exponent of the background score, > 0; a larger one gives less background.

    Raises:
        ValueError: alpha is not positive, class_indices do not fit the maps, or a map holds a value that is not finite.
    """
    _check(cams, class_indices, "alpha", alpha)
    height, width = superpixels.height_px, superpixels.width_px
    maps = _scaled_to_image(upsample(cams, height, width))
    classes = np.array([0, *class_indices], dtype=np.int16)
    scores = _scores(_min_max_over_superpixels(pooled_means(superpixels, maps)).T, alpha).T
    winner = scores.argmax(axis=1)
    painter = _paint(superpixels, scores.max(axis=1))
    covered = painter >= 0

    if len(superpixels) > 0:
        labels = np.where(covered, classes[winner][painter], 0)
        confidence = np.where(covered, _margin(scores.T)[painter], 1 - maps.max(axis=0, initial=0))
    else:
        pixel_scores = _scores(maps, alpha)
        labels, confidence = classes[pixel_scores.argmax(axis=0)], _margin(pixel_scores)
    labels = labels.astype(np.uint8)
    return Seed(
        labels=labels,
        superpixel_class=classes[winner],
        scores=scores,
        confidence=confidence.astype(np.float32),
        coverage=float(covered.mean()),
        missing=tuple(index for index in class_indices if not np.any(labels == index)),
    )


def label_map_from_cam(
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    height: int,
    width: int,
    power: float,
) -> UInt8[np.ndarray, "height width"]:
    """Labels from the maps alone: argmax over (1 - max_c CAM^c)^power and the CAMs (CLIP-ES; method M6).

    Args:
        cams: maps already scaled to 0..1, one for each present class, on the patch grid; upsampled here.
        class_indices: class index (1 to 254) of each map.
        height: of the image, pixels.
        width: of the image, pixels.
        power: exponent of the background score, > 0.

    Raises:
        ValueError: power is not positive, class_indices do not fit the maps, or a map holds a value that is not finite.
    """
    _check(cams, class_indices, "power", power)
    classes = np.array([0, *class_indices], dtype=np.uint8)
    return classes[_scores(upsample(cams, height, width), power).argmax(axis=0)]


def upsample(
    maps: Float32[np.ndarray, "maps grid_height grid_width"], height: int, width: int
) -> Float32[np.ndarray, "maps {height} {width}"]:
    """Bilinear resize, as torch's `interpolate(..., mode="bilinear", align_corners=False)`."""
    low, high, weight = _neighbours(maps.shape[2], width)
    rows = maps[:, :, low] * (1 - weight) + maps[:, :, high] * weight
    low, high, weight = _neighbours(maps.shape[1], height)
    return rows[:, low] * (1 - weight[:, None]) + rows[:, high] * weight[:, None]


def _neighbours(
    size_in: int, size_out: int
) -> tuple[Int[np.ndarray, " out"], Int[np.ndarray, " out"], Float32[np.ndarray, " out"]]:
    """The two source positions of each target position, and the weight of the second; float32 as in torch."""
    scale = np.float32(size_in) / np.float32(size_out)
    position = np.maximum((np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), size_in - 1)
    return low, np.minimum(low + 1, size_in - 1), np.clip(position - low.astype(np.float32), 0, 1)


def _scaled_to_image(maps: Float32[np.ndarray, "maps height width"]) -> Float32[np.ndarray, "maps height width"]:
    """Each map rectified and min-maxed over the image; 0 where it has no contrast."""
    scaled = np.zeros_like(maps)
    for values, target in zip(maps, scaled, strict=True):
        rectified = np.maximum(values, 0)
        highest, lowest = rectified.max(), rectified.min()
        if highest > 0 and highest - lowest > _FLAT * highest:
            target[:] = (rectified - lowest) / (highest - lowest)
    return scaled


def _min_max_over_superpixels(
    means: Float[np.ndarray, "superpixels present"],
) -> Float[np.ndarray, "superpixels present"]:
    if len(means) == 0:
        return means
    lowest = means.min(axis=0)
    spread = means.max(axis=0) - lowest
    return np.where(spread < _FLAT, means, (means - lowest) / (spread + _EPSILON))


def _scores(values: Float[np.ndarray, "present *rest"], power: float) -> Float32[np.ndarray, "1+present *rest"]:
    """The background's score and those of the classes.

    Rounded to float32 before anything is decided, so that the stored scores give the same seed again.
    """
    highest = np.clip(values.max(axis=0, initial=0), 0, 1)
    return np.concatenate([((1 - highest) ** power)[None], values]).astype(np.float32)


def _margin(scores: Float32[np.ndarray, "background_and_present *rest"]) -> Float32[np.ndarray, "*rest"]:
    """The best score minus the second; the best itself where there is no second."""
    ascending = np.sort(scores, axis=0)
    return ascending[-1] - (ascending[-2] if len(scores) > 1 else 0)


def _paint(
    superpixels: Superpixels, winning_score: Float32[np.ndarray, " superpixels"]
) -> Int[np.ndarray, "{superpixels.height_px} {superpixels.width_px}"]:
    """Index of the superpixel that ends on top at each pixel; -1 where there is none."""
    # Column-major, as the decoded masks are.
    painter = np.full((superpixels.height_px, superpixels.width_px), -1, dtype=np.int32, order="F")
    position = np.arange(len(superpixels))
    for index in np.lexsort((-position, winning_score, superpixels.level)).tolist():
        np.copyto(painter, index, where=superpixels.mask(index), casting="same_kind")
    return painter


def _check(
    cams: Float32[np.ndarray, "present grid_height grid_width"], class_indices: Sequence[int], name: str, power: float
) -> None:
    if not power > 0:
        raise ValueError(f"{name} must be larger than 0, got {power}.")
    if len(class_indices) != len(cams):
        raise ValueError(f"There are {len(cams)} class activation maps for {len(class_indices)} class indices.")
    if len(set(class_indices)) != len(class_indices) or not all(1 <= index <= 254 for index in class_indices):
        raise ValueError(f"Class indices must be distinct and between 1 and 254, got {list(class_indices)}.")
    for index, values in zip(class_indices, cams, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(f"The class activation map of class {index} holds a value that is not finite.")
