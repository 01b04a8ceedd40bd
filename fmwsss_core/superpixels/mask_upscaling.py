"""From a mask decoder's logits to masks of the image's size, as `Sam.postprocess_masks` makes them, but in one step.

The original enlarges to the encoder's input (1024 x 1024), cuts the padding off and resizes again: two bilinear maps,
whose product reads about three logits an axis for one pixel. Here that product is applied directly. Masks come out
column-major, as run lengths want them.

Masks are bit-identical: where a logit is within the rounding bound of a threshold, the mask falls back to the
reference two-step resize.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional

# Two 2 x 2 interpolations have 8 roundings of 6e-8 in a row, one of 3 x 3 taps and its weights 10; relative to the
# mean size of the logits that a pixel reads.
_RELATIVE_ERROR = 1.1e-6


class Measured(NamedTuple):
    """What a threshold needs to know of a mask.

    Attributes:
        above: pixels above the mask threshold plus the offset.
        below: pixels above the mask threshold minus the offset.
        boxes: left, top, right, bottom of the mask, inclusive; of no meaning for an empty one.
        filled: whether the mask has any pixel.
    """

    above: Int[Tensor, " masks"]
    below: Int[Tensor, " masks"]
    boxes: Int[Tensor, "masks 4"]
    filled: Bool[Tensor, " masks"]


class Enlarger:
    """Enlarges logits of one encoded image.

    Args:
        sam: its `postprocess_masks` is what is done.
        low_size: height and width of the logits.
        input_size: height and width of the resized image inside the encoder's square input.
        image_size: height and width of the image.
    """

    def __init__(
        self, sam: Sam, low_size: tuple[int, int], input_size: tuple[int, int], image_size: tuple[int, int]
    ) -> None:
        self._sam, self._input_size, self._image_size = sam, input_size, image_size
        side, device = sam.image_encoder.img_size, str(sam.device)
        self._rows = _taps(low_size[0], side, input_size[0], image_size[0], device)
        self._columns = _taps(low_size[1], side, input_size[1], image_size[1], device)

    def masks(self, logits: Float[Tensor, "masks low_height low_width"]) -> Bool[Tensor, "masks width height"]:
        """Masks of the image's size, column-major."""
        threshold = self._sam.mask_threshold
        height, width = self._image_size
        masks = torch.zeros(len(logits), width, height, dtype=torch.bool, device=logits.device)
        enlarged, (left, top) = self._enlarge(logits, [threshold])
        columns, rows = (
            slice(start, start + size) for start, size in zip((left, top), enlarged.shape[1:], strict=True)
        )
        masks[:, columns, rows] = _above(enlarged, threshold).bool()
        return masks

    def measure(self, logits: Float[Tensor, "masks low_height low_width"], offset: float) -> Measured:
        """Counts and boxes of masks of the image's size; see `Measured`.

        Args:
            logits: of SAM's decoder.
            offset: above and below the threshold, for the stability.

        Returns:
            Counts in pixels, and boxes.
        """
        threshold = self._sam.mask_threshold
        higher, lower = threshold + offset, threshold - offset
        enlarged, (left, top) = self._enlarge(logits, [threshold, higher, lower])
        # Counted by columns: a float32 counts no further than 16 million.
        above, below = (_above(enlarged, value).sum(dim=2).long().sum(dim=1) for value in (higher, lower))
        columns, rows = enlarged.amax(dim=2) > threshold, enlarged.amax(dim=1) > threshold
        (first_column, last_column), (first_row, last_row) = _first_and_last(columns), _first_and_last(rows)
        boxes = [left + first_column, top + first_row, left + last_column, top + last_row]
        return Measured(above, below, torch.stack(boxes, dim=1), columns.any(dim=1))

    def _enlarge(
        self, logits: Float[Tensor, "masks low_height low_width"], thresholds: list[float]
    ) -> tuple[Float[Tensor, "masks part_width part_height"], tuple[int, int]]:
        """Logits of the image's size, on the same side of every threshold as the original's.

        Returns:
            the part of the image outside which all are below every threshold, and its left and top.
        """
        error = _RELATIVE_ERROR * logits.abs().amax(dim=(1, 2))
        highest, lowest = logits.amax(dim=0), min(thresholds) - error.max()
        spans = [self._rows.reading(highest.amax(dim=1) > lowest), self._columns.reading(highest.amax(dim=0) > lowest)]
        (top, bottom), (left, right) = torch.stack(spans).tolist()
        rows, columns = self._rows.cut(top, bottom), self._columns.cut(left, right)
        enlarged = columns.apply(rows.apply(logits).transpose(1, 2))

        near = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for threshold in thresholds:
            near |= (enlarged - threshold).abs_().amin(dim=(1, 2)) < error
        suspects = near.nonzero()[:, 0]
        if len(suspects) > 0:
            parts = (enlarged[suspects], logits[suspects], error[suspects])
            suspects = suspects[~_decided(*parts, rows, columns, thresholds)]
        if len(suspects) > 0:
            # On a CPU torch takes another way of rounding for up to three channels: as many as the original had.
            enough = suspects[torch.arange(max(len(suspects), min(len(logits), 4))) % len(suspects)]
            original = self._sam.postprocess_masks(logits[enough][None], self._input_size, self._image_size)[0]
            part = original[: len(suspects), top : top + enlarged.shape[2], left : left + enlarged.shape[1]]
            enlarged[suspects] = part.transpose(1, 2)
        return enlarged, (left, top)


class _Taps(NamedTuple):
    """One axis: output position i is the sum over t of weight[t][i] * input[index[t][i]]."""

    index: list[Int[Tensor, " out"]]  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: list[Float[Tensor, "out 1"]]

    def reading(self, wanted: Bool[Tensor, " in"]) -> Int[Tensor, " 2"]:
        """Begin and end of the span of positions that read any wanted input; of the first one, if none does."""
        reads = torch.stack([wanted[index] for index in self.index]).any(dim=0)
        first, last = _first_and_last(reads[None])
        return torch.cat([first, torch.where(reads.any(), last, 0) + 1])

    def cut(self, start: int, stop: int) -> _Taps:
        """The same of a span of positions alone."""
        return _Taps([i[start:stop] for i in self.index], [w[start:stop] for w in self.weight])

    def apply(self, x: Float[Tensor, "masks in other"]) -> Float[Tensor, "masks out other"]:
        """Along the middle axis, so that rows are copied whole."""
        x = x.contiguous()
        total = x.index_select(1, self.index[0]).mul_(self.weight[0])
        for index, weight in zip(self.index[1:], self.weight[1:], strict=True):
            total.addcmul_(x.index_select(1, index), weight)
        return total


def _decided(
    enlarged: Float[Tensor, "masks width height"],
    logits: Float[Tensor, "masks low_height low_width"],
    error: Float[Tensor, " masks"],
    rows: _Taps,
    columns: _Taps,
    thresholds: list[float],
) -> Bool[Tensor, " masks"]:
    """Whether no pixel of a mask is near a threshold, the error measured by the logits that this pixel reads."""
    distances = torch.stack([(enlarged - threshold).abs_() for threshold in thresholds])
    which, mask, column, row = (distances < error[:, None, None]).nonzero(as_tuple=True)
    # What a pixel reads, (pixels, taps down, taps across), in one go: a GPU takes longer to be asked than to compute.
    down, across = torch.stack(rows.index, 1)[row], torch.stack(columns.index, 1)[column]
    read = logits[mask[:, None, None], down[:, :, None], across[:, None, :]].abs_()
    weight_down, weight_across = torch.cat(rows.weight, 1)[row], torch.cat(columns.weight, 1)[column]
    size = (weight_down[:, :, None] * weight_across[:, None, :] * read).sum(dim=(1, 2))
    distance = distances[which, mask, column, row]
    num_undecided = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)
    return num_undecided.index_add_(0, mask, (distance < _RELATIVE_ERROR * size).int()) == 0


@functools.lru_cache(maxsize=64)
def _taps(low: int, side: int, used: int, out: int, device: str) -> _Taps:
    # The operators are read off the library's own kernel: their weights are then exactly its own.
    grow = functional.interpolate(torch.eye(low)[None], side, mode="linear", align_corners=False)[0, :, :used]
    resize = functional.interpolate(torch.eye(used)[None], out, mode="linear", align_corners=False)[0]
    # Of the enlarged axis an output reads two neighbours at the most.
    lower = (resize != 0).int().argmax(dim=0)
    upper = (lower + 1).clamp(max=used - 1)
    weights = [resize.gather(0, side_of[None])[0].double() for side_of in (lower, upper)]
    weights[1] = torch.where(upper > lower, weights[1], 0)
    product = (weights[0] * grow[:, lower].double() + weights[1] * grow[:, upper].double()).T
    first = (product != 0).int().argmax(dim=1)
    num_taps = int((product != 0).sum(dim=1).max())
    index = [(first + tap).clamp(max=low - 1) for tap in range(num_taps)]
    weight = []
    for tap, position in enumerate(index):
        # A tap beyond the last logit was clamped onto one that another tap has read.
        inside = (first + tap < low).double()
        weight.append((product.gather(1, position[:, None]) * inside[:, None]).float().to(device))
    return _Taps([position.to(device) for position in index], weight)


def _above(x: Float[Tensor, "masks width height"], threshold: float) -> Float[Tensor, "masks width height"]:
    """1 where x is above the threshold, else 0; as floats, which compare several times faster than into booleans."""
    return torch.gt(x, threshold, out=torch.empty_like(x))


def _first_and_last(present: Bool[Tensor, "masks positions"]) -> tuple[Tensor, Tensor]:
    first = present.int().argmax(dim=1)
    return first, present.shape[1] - 1 - present.flip(1).int().argmax(dim=1)
