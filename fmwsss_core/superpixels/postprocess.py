"""What becomes of SAM's masks once the network is done with them (method M5.1): no torch, so CPU workers do it.

`sam.detect` leaves the masks of every crop as bits, box NMS within the crop done; here they become run lengths of the
whole image, are suppressed between crops, cleaned, and filtered by occupation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, Int16

from fmwsss.core.superpixels.box_nms import box_nms
from fmwsss.core.superpixels.masks import Superpixels, occupation_filter
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.rle import Runs, cut_by_column, merge_runs, runs_of_bits
from fmwsss.core.superpixels.small_regions import clean_superpixels

WHOLE = 2
# An untouched mask goes before a cleaned one, but not before a whole mask at priority 1.
UNTOUCHED_SCORE = 0.5


@dataclass(frozen=True, eq=False)
class Detections:
    """SAM's masks of one image, crop after crop, as the network's device leaves them.

    Attributes:
        height_px: height of the image.
        width_px: width of the image.
        crop_boxes: left, top, right (exclusive), bottom (exclusive) of every crop.
        crop: the crop of each mask.
        level: as in `Superpixels`; so are `predicted_iou` and `stability`.
        bits: the pixels of each mask in its crop, column-major, eight a byte, the first in the highest bit.
    """

    height_px: int
    width_px: int
    crop_boxes: tuple[tuple[int, int, int, int], ...]
    crop: Int16[np.ndarray, " masks"]
    level: Int8[np.ndarray, " masks"]
    predicted_iou: Float32[np.ndarray, " masks"]
    stability: Float32[np.ndarray, " masks"]
    bits: tuple[bytes, ...]


def pack_masks(masks: Bool[np.ndarray, "masks width height"]) -> list[bytes]:
    """Column-major masks as the `bits` of Detections."""
    return [row.tobytes() for row in np.packbits(masks.reshape(len(masks), -1), axis=1)]


def finish(detections: Detections, settings: ProposalSettings) -> Superpixels:
    """Run lengths, suppression between crops, cleaning and suppression after it, occupation filter.

    Args:
        detections: of `detect`.
        settings: see `ProposalSettings`.

    Returns:
        superpixels by level and then predicted IoU, both descending; with the occupation filter off, in the order of
        `SamAutomaticMaskGenerator`.
    """
    found = Superpixels.from_runs(
        detections.height_px,
        detections.width_px,
        detections.level,
        detections.predicted_iou,
        detections.stability,
        _runs(detections),
    )
    if settings.crop_layers > 0:
        left, top, right, bottom = np.array(detections.crop_boxes, dtype=np.int64).reshape(-1, 4)[detections.crop].T
        # Smaller crops show more detail.
        found = _suppress(found, 1 / ((right - left) * (bottom - top)), settings)
    if settings.min_region_area_px > 0:
        cleaned, untouched = clean_superpixels(found, settings.min_region_area_px)
        found = _suppress(cleaned, UNTOUCHED_SCORE * untouched, settings)
    if settings.occupation_threshold is None:
        return found
    by_level = np.lexsort((-found.predicted_iou, -found.level))
    return occupation_filter(found.select(by_level), settings.occupation_threshold)


def _suppress(
    superpixels: Superpixels, score: Float[np.ndarray, " superpixels"], settings: ProposalSettings
) -> Superpixels:
    if not settings.compat:
        score = score + settings.whole_priority * (superpixels.level == WHOLE)
    return superpixels.select(box_nms(superpixels.boxes_px(), score, settings.box_nms_threshold))


def _runs(detections: Detections) -> Runs:
    """Every mask in the whole image."""
    height, width = detections.height_px, detections.width_px
    parts = []
    for crop, (left, top, right, bottom) in enumerate(detections.crop_boxes):
        chosen = np.flatnonzero(detections.crop == crop)
        if len(chosen) == 0:
            continue
        runs = runs_of_bits(np.stack([np.frombuffer(detections.bits[i], np.uint8) for i in chosen]))
        runs = runs._replace(owner=chosen[runs.owner])
        if (left, top, right, bottom) != (0, 0, width, height):
            runs = _placed(runs, bottom - top, left, top, height)
        parts.append(runs)
    if not parts:
        return runs_of_bits(np.zeros((0, 0), np.uint8))
    return parts[0] if len(parts) == 1 else merge_runs(parts)


def _placed(runs: Runs, crop_height: int, left: int, top: int, height: int) -> Runs:
    """Runs of a crop as runs of the image."""
    cut = cut_by_column(runs, crop_height)
    column, row = np.divmod(cut.start, crop_height)
    start = (left + column) * height + top + row
    return merge_runs([Runs(cut.owner, start, start + cut.stop - cut.start)])
