"""From class activation maps and superpixels to a segmentation seed (FMA-WSSS eq. 8-10; method M5.2).

Needs no torch, so that pooling and painting run on CPU workers beside the GPU's forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, Int32, UInt8

from fmwsss.core.errors import InputError
from fmwsss.core.labels import IGNORE
from fmwsss.core.resize import upsample
from fmwsss.core.seeds.best_two import BestTwo
from fmwsss.core.seeds.foreground import rescore
from fmwsss.core.superpixels.masks import MeanInside, Superpixels, covered, topmost

# Below this spread (of a map scaled to 0..1) differences are rounding, and min-max would blow them up to 0..1.
_FLAT = 1e-6
_EPSILON = 1e-7


@dataclass(frozen=True, eq=False)
class Seed:
    """The seed of one image.

    Attributes:
        labels: class of each pixel, 0 = background, 255 = too close to call (only where that was asked for).
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
    ignore_below: float = 0.0,
    keep_labelled: bool = False,
    uncovered: Literal["background", "map"] = "background",
    foreground: Float[np.ndarray, " superpixels"] | None = None,
) -> Seed:
    """Gives every superpixel a class and paints them; of the maps there is one at a time at the size of the image.

    1. Each CAM is upsampled to the image, rectified, and scaled to 0..1 over the image's pixels (its scale and offset
       therefore do not matter); a map without contrast says nothing about where its class is and becomes 0.
    2. Its mean inside each superpixel is min-maxed over the superpixels: S^c (eq. 8). Where all means of a class are
       equal (one superpixel, or a spread below 1e-6) min-max would be 0 and the image would become background: there
       S^c is the mean itself.
    3. Background = (1 - max_c S^c)^alpha (eq. 9), class = argmax over background and the present classes (eq. 10).
       Equal scores: background first, then the order of `class_indices`. A class whose map is 0 never wins.
    4. Superpixels are painted upwards by (level, winning score), so a higher level wins, then a higher score; of equal
       ones the superpixel that comes first in `superpixels` wins. A background superpixel erases what lies under it.
       Pixels in no superpixel are background; with `uncovered="map"` they get the class that step 3 finds on the maps
       of step 1 at that pixel.

    An image without any superpixel is labelled pixel by pixel with the rule of step 3 on the maps of step 1.

    Confidence: the winning score of the painting superpixel minus its second score; outside all superpixels, 1 minus
    the largest map of step 1; without superpixels, the difference of the pixel's own two best scores.

    Args:
        superpixels: of one image of height by width pixels.
        cams: one map for each present class, on the patch grid, raw or normalised.
        class_indices: class index (1 to 254) of each map.
        alpha: exponent of the background score, > 0; a larger one gives less background.
        ignore_below: pixels of a lower confidence become 255.
        keep_labelled: a present class that got no pixel is given the superpixel with its highest score, painted over
            all others, with confidence 0 (of equal scores the first; one that hides the last pixel of another present
            class is passed over). Where there is no such superpixel it is given the pixels where its map is at least
            half as high as anywhere, one pixel left to each other class. Only a class whose map is 0, or nowhere
            else than on those pixels, still has none.
        uncovered: what decides pixels in no superpixel: nothing, they are background (paper), or the map (ours).
        foreground: above 0 where a superpixel is foreground by a model of the dataset (`ForegroundModel.decide`, M5.5);
            takes the place of eq. 9 (ours). None: the maps of this image decide alone.

    Raises:
        ValueError: alpha is not positive, class_indices do not fit the maps, or a map holds a value that is not finite.
    """
    _check(cams, class_indices, "alpha", alpha)
    inside = covered(superpixels)
    by_map = len(superpixels) == 0 or uncovered == "map"
    # Column-major, as masks and maps lie in memory.
    outside = ~inside.T.reshape(-1)
    best = BestTwo(int(outside.sum()), keep_second=by_map)

    def look(values: Float32[np.ndarray, "height width"], low: np.float32, high: np.float32) -> None:
        best.add((values.T.reshape(-1)[outside] - low) / (high - low))

    scores = _scores(_class_scores(superpixels, cams, look).T, alpha).T
    if foreground is not None:
        scores = rescore(scores, foreground)
    winner = scores.argmax(axis=1)
    classes = np.array([0, *class_indices], dtype=np.uint8)
    # Entry -1, the last, is for pixels in no superpixel.
    painter = paint(superpixels, scores.max(axis=1)).T.reshape(-1)
    labels = np.append(classes[winner], np.uint8(0))[painter]
    confidence = np.append(margin(scores.T), np.float32(0))[painter]
    if by_map:
        labels[outside], confidence[outside] = classes[best.winner(alpha)], best.margin(alpha)
    else:
        confidence[outside] = 1 - best.first
    labels, confidence = labels.reshape(inside.T.shape).T, confidence.reshape(inside.T.shape).T
    superpixel_class = classes[winner].astype(np.int16)
    labels[confidence < ignore_below] = IGNORE
    if keep_labelled:
        _keep_labelled(superpixels, scores, cams, class_indices, labels, confidence, superpixel_class)
    return Seed(
        labels=labels,
        superpixel_class=superpixel_class,
        scores=scores,
        confidence=confidence,
        coverage=1 - best.first.size / inside.size,
        missing=missing_classes(labels, class_indices),
    )


def class_scores(
    superpixels: Superpixels, cams: Float32[np.ndarray, "present grid_height grid_width"]
) -> Float[np.ndarray, "superpixels present"]:
    """S^c of eq. 8, as steps 1 and 2 of `seed_image` make it.

    Args:
        superpixels: of one image.
        cams: one map for each present class, on the patch grid.

    Returns:
        The score of each superpixel for each class, 0 to 1.
    """
    return _class_scores(superpixels, cams, lambda *_: None)


def superpixel_scores(
    superpixels: Superpixels, cams: Float32[np.ndarray, "present grid_height grid_width"], alpha: float
) -> Float32[np.ndarray, "superpixels background_and_present"]:
    """`Seed.scores` (eq. 8 and 9) without a seed: nothing is painted.

    Args:
        superpixels: of one image.
        cams: one map for each present class.
        alpha: exponent of the background score, > 0.
    """
    return _scores(class_scores(superpixels, cams).T, alpha).T


def _class_scores(
    superpixels: Superpixels,
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    look: Callable[[Float32[np.ndarray, "height width"], np.float32, np.float32], None],
) -> Float[np.ndarray, "superpixels present"]:
    """S^c; `look` sees each map of step 1 once, its minimum and its maximum: there is one at a time in memory."""
    size = superpixels.height_px, superpixels.width_px
    mean_inside = MeanInside(superpixels)
    means = np.zeros((len(superpixels), len(cams)))
    for column, cam in enumerate(cams):
        values, low, high = _rectified(cam, *size)
        # The mean of a scaled map is its scaled mean: no map is scaled but where its values are asked for.
        means[:, column] = (mean_inside(values, float(high)) - low) / (high - low)
        look(values, low, high)
    return _min_max_over_superpixels(means)


def paint(
    superpixels: Superpixels, winning_score: Float32[np.ndarray, " superpixels"]
) -> Int32[np.ndarray, "{superpixels.height_px} {superpixels.width_px}"]:
    """Index of the superpixel on top at each pixel, -1 where there is none: by level, then score, then the first.

    Args:
        superpixels: of one image.
        winning_score: of each superpixel's best class.

    Returns:
        Superpixel indices.
    """
    position = np.arange(len(superpixels))
    return topmost(superpixels, np.lexsort((-position, winning_score, superpixels.level)))


def missing_classes(labels: UInt8[np.ndarray, "height width"], class_indices: Sequence[int]) -> tuple[int, ...]:
    """Those of `class_indices` that have no pixel.

    Args:
        labels: class indices.
        class_indices: those that should be there.

    Returns:
        Class indices, in their order.
    """
    return tuple(index for index in class_indices if not np.any(labels == index))


def _keep_labelled(
    superpixels: Superpixels,
    scores: Float32[np.ndarray, "superpixels background_and_present"],
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    labels: UInt8[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"],
    superpixel_class: Int16[np.ndarray, " superpixels"],
) -> None:
    """Writes the option `keep_labelled` of `seed_image` into the last three."""
    for class_index in missing_classes(labels, class_indices):
        column = list(class_indices).index(class_index)
        own = scores[:, 1 + column]
        for candidate in np.argsort(-own, kind="stable"):
            if own[candidate] <= 0:
                continue
            mask = superpixels.mask(int(candidate))
            hidden = set(np.unique(labels[mask]).tolist()) & set(class_indices)
            if mask.any() and not any((labels == other).sum() == (labels[mask] == other).sum() for other in hidden):
                superpixel_class[candidate] = class_index
                break
        else:
            values, low, _ = _rectified(cams[column], *labels.shape)
            mask = _peak(values - low, labels, class_indices)
        labels[mask], confidence[mask] = class_index, 0


def _peak(
    height: Float32[np.ndarray, "height width"], labels: UInt8[np.ndarray, "height width"], classes: Sequence[int]
) -> Bool[np.ndarray, "height width"]:
    """Where a map is at least half as high as anywhere, without a pixel of each class, that where it is lowest."""
    free = np.where(height > 0, height, 0)
    for other in classes:
        pixels = np.flatnonzero(labels == other)
        if len(pixels):
            free.flat[pixels[height.flat[pixels].argmin()]] = 0
    return (free >= free.max() / 2) & (free > 0)


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
    return label_maps_from_cam(cams, class_indices, height, width, [power])[0]


def label_maps_from_cam(
    cams: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    height: int,
    width: int,
    powers: Sequence[float],
) -> list[UInt8[np.ndarray, "{height} {width}"]]:
    """`label_map_from_cam` for each of several powers; the maps are gone through once.

    Args:
        cams: maps already scaled to 0..1, one for each present class, on the patch grid; upsampled here.
        class_indices: class index (1 to 254) of each map.
        height: of the image, pixels.
        width: of the image, pixels.
        powers: of the background's score, each larger than 0.

    Returns:
        A label map for each power.
    """
    for power in powers:
        _check(cams, class_indices, "power", power)
    best = _best_two(cams, height, width)
    classes = np.array([0, *class_indices], dtype=np.uint8)
    return [classes[best.winner(power)].reshape(width, height).T for power in powers]


def margins_of_cams(
    cams: Float32[np.ndarray, "present grid_height grid_width"], height: int, width: int, power: float
) -> Float32[np.ndarray, "{height} {width}"]:
    """The best score of each pixel minus the second, of those that `label_map_from_cam` compares.

    Args:
        cams: maps already scaled to 0..1, one for each present class, on the patch grid; upsampled here.
        height: of the image, pixels.
        width: of the image, pixels.
        power: of the background's score, larger than 0.

    Returns:
        0 to 1; 1 where there is one score alone.
    """
    return _best_two(cams, height, width).margin(power).reshape(width, height).T


def _best_two(cams: Float32[np.ndarray, "present grid_height grid_width"], height: int, width: int) -> BestTwo:
    best = BestTwo(height * width)
    for cam in cams:
        best.add(upsample(cam[None], height, width)[0].T.reshape(-1))
    return best


def cam_probabilities(
    maps: Float32[np.ndarray, "present *rest"], power: float
) -> Float32[np.ndarray, "1+present *rest"]:
    """Scores of the background, (1 - max_c CAM^c)^power, and of the classes; the unary of a CRF (CLIP-ES).

    Args:
        maps: scaled to 0..1.
        power: exponent of the background score, > 0.
    """
    return _scores(maps, power)


def margin(scores: Float32[np.ndarray, "background_and_present *rest"]) -> Float32[np.ndarray, "*rest"]:
    """The best score minus the second; the best itself where there is no second."""
    ascending = np.sort(scores, axis=0)
    return ascending[-1] - (ascending[-2] if len(scores) > 1 else 0)


def _rectified(
    cam: Float32[np.ndarray, "grid_height grid_width"], height: int, width: int
) -> tuple[Float32[np.ndarray, "{height} {width}"], np.float32, np.float32]:
    """A map upsampled and rectified, its minimum and its maximum over the image; 0, and 0 and 1, without contrast."""
    values = upsample(cam[None], height, width)[0]
    if cam.min() < 0:
        np.maximum(values, 0, out=values)
    low, high = values.min(), values.max()
    if high > 0 and high - low > _FLAT * high:
        return values, low, high
    values[:] = 0
    return values, np.float32(0), np.float32(1)


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


def _check(
    cams: Float32[np.ndarray, "present grid_height grid_width"], class_indices: Sequence[int], name: str, power: float
) -> None:
    if not power > 0:
        raise InputError(f"{name} must be larger than 0, got {power}.")
    if len(class_indices) != len(cams):
        raise InputError(f"There are {len(cams)} class activation maps for {len(class_indices)} class indices.")
    if len(set(class_indices)) != len(class_indices) or not all(1 <= index <= 254 for index in class_indices):
        raise InputError(f"Class indices must be distinct and between 1 and 254, got {list(class_indices)}.")
    for index, values in zip(class_indices, cams, strict=True):
        if not np.isfinite(values).all():
            raise InputError(f"The class activation map of class {index} holds a value that is not finite.")
