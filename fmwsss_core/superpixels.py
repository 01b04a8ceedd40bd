"""Superpixels: the mask proposals of one image, run-length encoded, with level and scores (method M5.1, M5.2).

A mask is stored as COCO's compressed run lengths (column-major), the format pycocotools reads and writes. Pooling and
overlaps work on the runs, so their cost follows the outlines and not the number of pixels times the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int8, Int64
from pycocotools import mask as coco


@dataclass(frozen=True, eq=False)
class Superpixels:
    """The masks of one image, as arrays side by side.

    Attributes:
        height_px: height of the image.
        width_px: width of the image.
        level: 0 = sub-part, 1 = part, 2 = whole (SAM's multimask output index).
        predicted_iou: SAM's own estimate of the mask's quality, without any offset.
        stability: IoU of the mask binarised a little higher and a little lower, 0 to 1.
        rle: COCO compressed counts of each mask.
    """

    height_px: int
    width_px: int
    level: Int8[np.ndarray, " superpixels"]
    predicted_iou: Float32[np.ndarray, " superpixels"]
    stability: Float32[np.ndarray, " superpixels"]
    rle: tuple[bytes, ...]

    def __post_init__(self) -> None:
        assert len(self.rle) == len(self.level) == len(self.predicted_iou) == len(self.stability)

    @classmethod
    def from_masks(
        cls,
        masks: Bool[np.ndarray, "superpixels height width"],
        level: Int8[np.ndarray, " superpixels"],
        predicted_iou: Float32[np.ndarray, " superpixels"],
        stability: Float32[np.ndarray, " superpixels"],
    ) -> Superpixels:
        """Encodes masks; for the meaning of the other arrays see the class."""
        _, height, width = masks.shape
        return cls(height, width, level, predicted_iou, stability, encode_masks(masks))

    def __len__(self) -> int:
        return len(self.rle)

    def mask(self, index: int) -> Bool[np.ndarray, "height width"]:
        """One mask, decoded; column-major in memory, as the runs are."""
        lengths = _run_lengths(self.rle[index])
        inside = np.arange(len(lengths)) % 2 == 1
        return np.repeat(inside, lengths).reshape((self.height_px, self.width_px), order="F")

    def masks(self) -> Bool[np.ndarray, "superpixels height width"]:
        """All masks, decoded: num_superpixels * height * width bytes. Use `mask` where one at a time will do."""
        decoded = np.zeros((len(self), self.height_px, self.width_px), dtype=bool)
        for index in range(len(self)):
            decoded[index] = self.mask(index)
        return decoded

    def select(self, indices: Int[np.ndarray, " kept"] | Sequence[int]) -> Superpixels:
        """The masks named by `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        rle = tuple(self.rle[index] for index in chosen)
        return Superpixels(
            self.height_px, self.width_px, self.level[chosen], self.predicted_iou[chosen], self.stability[chosen], rle
        )

    def area_px(self) -> Int64[np.ndarray, " superpixels"]:
        """Number of pixels of each mask."""
        return np.asarray(coco.area(self._as_coco()), dtype=np.int64).reshape(len(self))

    def boxes_px(self) -> Int64[np.ndarray, "superpixels 4"]:
        """Left, top, right, bottom of each mask, inclusive (as segment-anything's boxes); zeros for an empty mask."""
        boxes = np.asarray(coco.toBbox(self._as_coco()), dtype=np.int64).reshape(len(self), 4)
        boxes[:, 2:] = np.maximum(boxes[:, :2] + boxes[:, 2:] - 1, 0)
        return boxes

    def runs(self) -> Iterator[tuple[Int64[np.ndarray, " runs"], Int64[np.ndarray, " runs"]]]:
        """For each mask, start and stop (exclusive) of its runs in the column-major pixel order."""
        for counts in self.rle:
            ends = np.cumsum(_run_lengths(counts))
            yield ends[: len(ends) - 1 : 2], ends[1::2]

    def _as_coco(self) -> Any:
        size = [self.height_px, self.width_px]
        return [{"size": size, "counts": counts} for counts in self.rle]


def encode_masks(masks: Bool[np.ndarray, "superpixels height width"]) -> tuple[bytes, ...]:
    """COCO compressed counts of each mask."""
    if len(masks) == 0:
        return ()
    encoded: Any = coco.encode(np.asfortranarray(masks.view(np.uint8).transpose(1, 2, 0)))
    return tuple(run["counts"] for run in encoded)


def intersections(first: Superpixels, second: Superpixels) -> Int64[np.ndarray, "first second"]:
    """Number of pixels that each mask of `first` shares with each mask of `second`; exact."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros((len(first), len(second)), dtype=np.int64)
    # With the crowd flag pycocotools divides the intersection by the area of the first mask alone.
    shares = coco.iou(first._as_coco(), second._as_coco(), [1] * len(second))
    return np.rint(np.asarray(shares) * first.area_px()[:, None]).astype(np.int64)


def occupation_filter(superpixels: Superpixels, threshold: float) -> Superpixels:
    """Drops the masks that a mask of a higher level already occupies (FMA-WSSS; method M5.1, change 3).

    Levels are visited from whole to sub-part. A mask m is kept if max over s of |m & s| / |m| < threshold, s running
    over the single masks kept at HIGHER levels. Masks of the same level do not compete. An empty mask is occupied by
    nothing and is kept.

    Returns:
        the kept masks, in the order of `superpixels`.
    """
    kept = np.zeros(len(superpixels), dtype=bool)
    for level in sorted(set(superpixels.level.tolist()), reverse=True):
        candidates = np.flatnonzero(superpixels.level == level)
        lower, higher = superpixels.select(candidates), superpixels.select(np.flatnonzero(kept))
        largest = intersections(lower, higher).max(axis=1, initial=0)
        kept[candidates] = largest / np.maximum(lower.area_px(), 1) < threshold
    return superpixels.select(np.flatnonzero(kept))


def pooled_means(
    superpixels: Superpixels, maps: Float[np.ndarray, "classes height width"]
) -> Float64[np.ndarray, "superpixels classes"]:
    """Mean of each map inside each mask (method M5.2, the mean of eq. 8); 0 for an empty mask.

    Prefix sums along the runs, in double precision and in one fixed order: the same bytes on every machine, whatever
    its number of threads or its matrix library.
    """
    bounds = list(superpixels.runs())
    owner = np.repeat(np.arange(len(bounds)), [len(start) for start, _ in bounds])
    empty = np.zeros(0, dtype=np.int64)
    starts = np.concatenate([empty, *(start for start, _ in bounds)])
    stops = np.concatenate([empty, *(stop for _, stop in bounds)])
    means = np.zeros((len(superpixels), len(maps)))
    prefix = np.zeros(superpixels.height_px * superpixels.width_px + 1)
    for column, values in enumerate(maps):
        np.cumsum(values.ravel(order="F"), dtype=np.float64, out=prefix[1:])
        means[:, column] = np.bincount(owner, weights=prefix[stops] - prefix[starts], minlength=len(superpixels))
    return means / np.maximum(superpixels.area_px(), 1)[:, None]


def _run_lengths(counts: bytes) -> Int64[np.ndarray, " lengths"]:
    """Lengths of the runs, background first, from COCO's compressed string.

    Five bits a character, lowest first; bit 5 says that more follow, bit 4 of the last one is the sign. From the
    fourth run on, a number is the difference to the run two places before.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    lengths = np.add.reduceat((digits & 31) << (5 * place), first)
    lengths -= ((digits[last] & 16) >> 4) << (5 * (place[last] + 1))
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths
