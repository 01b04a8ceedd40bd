"""What masks and maps would give if every decision about them were right: how much each of the two costs.

These read the ground truth. They are for reports and are used for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from fmwsss.core.labels import IGNORE
from fmwsss.core.resize import upsample
from fmwsss.core.seeds.sams import paint
from fmwsss.core.superpixels.masks import Superpixels, pooled_means

# Exponents of the background score that the best-on-truth figure is looked for among; the figure itself uses alpha.
POWERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_NUM_CUTS = 256


def named_by_truth(
    superpixels: Superpixels, truth: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width"]:
    """Every superpixel is what most of its judged pixels are, then painted as seeds are: the ceiling of the masks.

    Painted upwards by (level, share of the pixels that are of its class), as docs/method.md, M5.2 does by score. Pixels
    in no superpixel, and superpixels without a judged pixel, are background; of equal shares the lowest class wins.

    Args:
        superpixels: of one image.
        truth: of that image; 255 is not judged.
    """
    classes = np.unique(np.append(truth[truth != IGNORE], np.uint8(0)))
    if len(superpixels) == 0:
        return np.zeros(truth.shape, dtype=np.uint8)
    shares = pooled_means(superpixels, ((truth == index).astype(np.float32) for index in classes))
    judged = shares.sum(axis=1)
    best = (shares.max(axis=1) / np.maximum(judged, 1e-9)).astype(np.float32)
    painter = paint(superpixels, best)
    # Entry -1, the last, is for pixels in no superpixel.
    return np.append(classes[shares.argmax(axis=1)], np.uint8(0))[painter]


def cut_best(
    maps: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    truth: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """Every map is cut where it fits its class best, image by image: the ceiling of the maps without masks.

    Of 256 thresholds from 0 on (a pixel at or above one is in) the lowest of those with the highest IoU is taken, for
    each class by itself. A pixel in several classes is of the one that it is furthest above the threshold of, of equal
    ones the first. A class without a pixel in the ground truth has none.

    Args:
        maps: 0 to 1, one for each present class; upsampled here.
        class_indices: class index (1 to 254) of each map.
        truth: of the image; 255 is not judged.
    """
    labels, above = np.zeros(truth.shape, dtype=np.uint8), np.full(truth.shape, -1, dtype=np.int64)
    judged = truth != IGNORE
    for cam, index in zip(maps, class_indices, strict=True):
        values = upsample(cam[None], *truth.shape)[0]
        level = np.clip(np.floor(values * _NUM_CUTS), 0, _NUM_CUTS - 1).astype(np.int64)
        inside = _at_or_above(level[truth == index])
        if inside[0] == 0:
            continue
        covered = _at_or_above(level[judged])
        excess = level - int(np.argmax(inside / (inside[0] + covered - inside)))
        wins = (excess >= 0) & (excess > above)
        labels[wins], above[wins] = index, excess[wins]
    return labels


def _at_or_above(levels: Int64[np.ndarray, " pixels"]) -> Int64[np.ndarray, " cuts"]:
    return np.bincount(levels, minlength=_NUM_CUTS)[::-1].cumsum()[::-1]
