"""Superpixels: the mask proposals of one image, run-length encoded, with level and scores (method M5.1, M5.2).

A mask is stored as COCO's compressed run lengths (column-major), the format pycocotools reads and writes. Pooling and
overlaps work on the runs, so their cost follows the outlines and not the number of pixels times the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int8, Int32, Int64
from pycocotools import mask as coco

from fmwsss.core.superpixels.rle import Runs, runs_of_bits, runs_of_coco, runs_to_coco


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
        """Encodes masks; for the meaning of the other arrays see the class.

        Args:
            masks: of one image, dense.
            level: 0 sub-part, 1 part, 2 whole.
            predicted_iou: SAM's own.
            stability: SAM's own.

        Returns:
            The same masks as run lengths.
        """
        num_masks, height, width = masks.shape
        bits = np.packbits(masks.transpose(0, 2, 1).reshape(num_masks, height * width), axis=1)
        return cls.from_runs(height, width, level, predicted_iou, stability, runs_of_bits(bits))

    @classmethod
    def from_runs(
        cls,
        height_px: int,
        width_px: int,
        level: Int8[np.ndarray, " superpixels"],
        predicted_iou: Float32[np.ndarray, " superpixels"],
        stability: Float32[np.ndarray, " superpixels"],
        runs: Runs,
    ) -> Superpixels:
        """Encodes masks given by their runs, of which no two touch.

        Args:
            height_px: of the image.
            width_px: of the image.
            level: 0 sub-part, 1 part, 2 whole.
            predicted_iou: SAM's own.
            stability: SAM's own.
            runs: column by column.

        Returns:
            The same masks as run lengths.
        """
        rle = runs_to_coco(runs, len(level), height_px * width_px)
        encoded = cls(height_px, width_px, level, predicted_iou, stability, rle)
        encoded.__dict__["runs"] = runs
        return encoded

    def __len__(self) -> int:
        return len(self.rle)

    def mask(self, index: int) -> Bool[np.ndarray, "height width"]:
        """One mask, decoded; column-major in memory, as the runs are."""
        owner, start, stop = self.runs
        own = slice(*np.searchsorted(owner, [index, index + 1]))
        bounds = np.stack([start[own], stop[own]], axis=1).ravel()
        lengths = np.diff(bounds, prepend=0, append=self.height_px * self.width_px)
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
        if "runs" not in self.__dict__:
            # One by one: pycocotools fails on more than 255 masks.
            return np.array([coco.area(mask) for mask in self.as_coco()], dtype=np.int64)
        owner, start, stop = self.runs
        return np.bincount(owner, weights=stop - start, minlength=len(self)).astype(np.int64)

    def boxes_px(self) -> Int64[np.ndarray, "superpixels 4"]:
        """Left, top, right, bottom of each mask, inclusive (as segment-anything's boxes); zeros for an empty mask."""
        boxes = np.asarray(coco.toBbox(self.as_coco()), dtype=np.int64).reshape(len(self), 4)
        boxes[:, 2:] = np.maximum(boxes[:, :2] + boxes[:, 2:] - 1, 0)
        return boxes

    @cached_property
    def runs(self) -> Runs:
        """The runs of all masks."""
        return runs_of_coco(self.rle, self.height_px * self.width_px)

    def as_coco(self) -> Any:
        """The masks as pycocotools takes them: run lengths, compressed."""
        size = [self.height_px, self.width_px]
        return [{"size": size, "counts": counts} for counts in self.rle]


def intersections(first: Superpixels, second: Superpixels) -> Int64[np.ndarray, "first second"]:
    """Number of pixels that each mask of `first` shares with each mask of `second`; exact.

    Args:
        first: of one image.
        second: of the same image.

    Returns:
        Pixels.
    """
    if len(first) == 0 or len(second) == 0:
        return np.zeros((len(first), len(second)), dtype=np.int64)
    # With the crowd flag pycocotools divides the intersection by the area of the first mask alone.
    shares = coco.iou(first.as_coco(), second.as_coco(), [1] * len(second))
    return np.rint(np.asarray(shares) * first.area_px()[:, None]).astype(np.int64)


def occupation_filter(superpixels: Superpixels, threshold: float) -> Superpixels:
    """Drops the masks that a mask of a higher level already occupies (FMA-WSSS; method M5.1, change 3).

    Levels are visited from whole to sub-part. A mask m is kept if max over s of |m & s| / |m| < threshold, s running
    over the single masks kept at HIGHER levels. Masks of the same level do not compete. An empty mask is occupied by
    nothing and is kept.

    Args:
        superpixels: of one image.
        threshold: share of a mask, 0 to 1.

    Returns:
        the kept masks, in the order of `superpixels`.
    """
    kept, area_px = np.zeros(len(superpixels), dtype=bool), superpixels.area_px()
    for level in sorted(set(superpixels.level.tolist()), reverse=True):
        candidates = np.flatnonzero(superpixels.level == level)
        lower, higher = superpixels.select(candidates), superpixels.select(np.flatnonzero(kept))
        largest = intersections(lower, higher).max(axis=1, initial=0)
        kept[candidates] = largest / np.maximum(area_px[candidates], 1) < threshold
    return superpixels.select(np.flatnonzero(kept))


def pooled_means(
    superpixels: Superpixels, maps: Iterable[Float[np.ndarray, "height width"]]
) -> Float64[np.ndarray, "superpixels classes"]:
    """Mean of each map inside each mask (method M5.2, the mean of eq. 8); 0 for an empty mask. See `MeanInside`.

    Args:
        superpixels: of one image.
        maps: of that image; asked for one by one, so that they need not be in memory together.
    """
    mean_inside = MeanInside(superpixels)
    means = [mean_inside(values, max(abs(float(values.min())), abs(float(values.max())))) for values in maps]
    return np.stack(means, axis=1) if means else np.zeros((len(superpixels), 0))


class MeanInside:
    """Means of one map after another inside the masks of one image, in the memory of one map.

    Prefix sums along the runs, of whole numbers: a map is scaled by a power of two such that the sum over the image
    fits 62 bits. That is finer than its float32 values but for those below a millionth of the largest, and additions
    have no rounding: the same bytes on every machine, whatever their order.

    Args:
        superpixels: of one image.
    """

    def __init__(self, superpixels: Superpixels) -> None:
        self._runs, self._num_masks = superpixels.runs, len(superpixels)
        self._area_px = np.maximum(superpixels.area_px(), 1)
        self._prefix = np.zeros(superpixels.height_px * superpixels.width_px + 1, dtype=np.int64)

    def __call__(
        self, values: Float[np.ndarray, "height width"], largest: float
    ) -> Float64[np.ndarray, " superpixels"]:
        """The mean inside each mask; 0 for an empty one.

        Args:
            values: of the image's pixels.
            largest: none of them is further from 0.
        """
        (owner, start, stop), prefix = self._runs, self._prefix
        scale = 2.0 ** (62 - np.frexp(float(len(prefix) - 1))[1] - np.frexp(largest)[1])
        np.multiply(values.ravel(order="F"), np.float64(scale), out=prefix[1:], casting="unsafe")
        np.cumsum(prefix, out=prefix)
        return np.bincount(owner, prefix[stop] - prefix[start], minlength=self._num_masks) / scale / self._area_px


def covered(superpixels: Superpixels) -> Bool[np.ndarray, "{superpixels.height_px} {superpixels.width_px}"]:
    """Which pixels lie in any mask; column-major in memory."""
    _, start, stop = superpixels.runs
    num_pixels = superpixels.height_px * superpixels.width_px
    # Of all masks one may begin and another end at a pixel: depths, not bits. Runs are fewer than 2^31.
    depth = np.zeros(num_pixels + 1, dtype=np.int32)
    np.add.at(depth, start, 1)
    np.subtract.at(depth, stop, 1)
    inside = np.cumsum(depth[:-1], out=depth[:-1]) > 0
    return inside.reshape((superpixels.height_px, superpixels.width_px), order="F")


def topmost(
    superpixels: Superpixels, order: Int64[np.ndarray, " superpixels"]
) -> Int32[np.ndarray, "{superpixels.height_px} {superpixels.width_px}"]:
    """Which superpixel is on top at each pixel if they are painted one over the other; -1 where there is none.

    No mask is decoded. A run is the union of two stretches of 2^k pixels, the largest power of two in it; the highest
    painter of every such stretch is noted at its first pixel, then handed down from k to k - 1: two maxima over the
    image for each k, however many masks there are.

    Args:
        superpixels: of one image.
        order: their indices, from the first painted to the last.
    """
    num_pixels = superpixels.height_px * superpixels.width_px
    rank = np.empty(len(superpixels), dtype=np.int64)
    rank[order] = np.arange(len(superpixels))
    owner, start, stop = superpixels.runs
    by_rank = np.argsort(rank[owner], kind="stable")
    start, stop, rank = start[by_rank], stop[by_rank], rank[owner[by_rank]]
    power = np.frexp((stop - start).astype(float))[1] - 1

    # Ranks start at 1: no painter is 0, as fresh memory is.
    number = np.int16 if len(order) < 2**15 - 1 else np.int32
    rank = (1 + rank).astype(number)
    highest, spare = np.zeros(num_pixels, dtype=number), np.empty(num_pixels, dtype=number)
    for k in range(int(power.max(initial=0)), -1, -1):
        here = power == k
        ends = np.stack([start[here], stop[here] - (1 << k)], axis=1)
        # Of several assignments to one pixel the last stays: the highest.
        highest[ends] = np.maximum(highest[ends], rank[here][:, None])
        if k > 0:
            half = 1 << (k - 1)
            spare[:half] = highest[:half]
            np.maximum(highest[half:], highest[:-half], out=spare[half:])
            highest, spare = spare, highest
    painters = np.concatenate([[-1], order]).astype(np.int32)
    return painters[highest].reshape((superpixels.height_px, superpixels.width_px), order="F")
