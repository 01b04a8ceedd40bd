"""Masks as stretches of the column-major pixel order: from packed bits, from COCO's strings and to them.

COCO's compressed run lengths are what pycocotools reads and writes. Here they are read and written for all masks of an
image in a few passes over arrays, so that the cost follows the outlines: neither the pixels nor the number of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8


class Runs(NamedTuple):
    """Stretches of the column-major pixel order, of several masks: sorted by owner and then start, none empty.

    Attributes:
        owner: index of the mask.
        start: first pixel.
        stop: the pixel behind the last.
    """

    owner: Int64[np.ndarray, " runs"]
    start: Int64[np.ndarray, " runs"]
    stop: Int64[np.ndarray, " runs"]

    def select(self, kept: Bool[np.ndarray, " runs"]) -> Runs:
        """The runs marked, in their order."""
        return Runs(self.owner[kept], self.start[kept], self.stop[kept])


def runs_of_bits(bits: UInt8[np.ndarray, "masks bytes"]) -> Runs:
    """The runs of masks that are packed eight pixels a byte, the first in the highest bit; what pads them is 0."""
    before = np.zeros((len(bits), bits.shape[1] + 1), dtype=np.uint8)
    before[:, 1:] = bits << 7
    before[:, :-1] |= bits >> 1
    # A bit is set where a pixel differs from the one before it; a last byte for masks that end with a pixel.
    changes = before
    changes[:, :-1] ^= bits
    changed = np.flatnonzero(changes.reshape(-1) != 0)
    which = np.flatnonzero(np.unpackbits(changes.reshape(-1)[changed]).view(bool))
    place = 8 * changed[which >> 3] + (which & 7)
    owner, start = np.divmod(place[::2], 8 * changes.shape[1])
    return Runs(owner, start, place[1::2] - 8 * changes.shape[1] * owner)


def cut_by_column(runs: Runs, height: int) -> Runs:
    """Runs cut where a column ends.

    Args:
        runs: column by column.
        height: of a column, pixels.

    Returns:
        Runs of which none goes over two columns.
    """
    num_columns = (runs.stop - 1) // height - runs.start // height + 1
    which = np.repeat(np.arange(len(runs.start)), num_columns)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(num_columns) - num_columns, num_columns)
    column_start = (runs.start[which] // height + nth) * height
    start = np.maximum(runs.start[which], column_start)
    return Runs(runs.owner[which], start, np.minimum(runs.stop[which], column_start + height))


def merge_runs(parts: Sequence[Runs]) -> Runs:
    """Disjoint runs as one list, those that touch joined."""
    owner, start, stop = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.lexsort((start, owner))
    owner, start, stop = owner[order], start[order], stop[order]
    begins = np.ones(len(owner), dtype=bool)
    begins[1:] = (owner[1:] != owner[:-1]) | (start[1:] != stop[:-1])
    ends = np.append(begins[1:], True)[: len(begins)]
    return Runs(owner[begins], start[begins], stop[ends])


def runs_to_coco(runs: Runs, num_masks: int, num_pixels: int) -> tuple[bytes, ...]:
    """COCO's compressed counts of each mask, byte for byte those of `pycocotools.mask.encode`.

    Lengths of background and mask in turn, background first. From the fourth on, a length is written as its difference
    to the one two places before: five bits a character, lowest first; bit 5 says that more follow, bit 4 of the last
    one is the sign.

    Args:
        runs: no two of them touch.
        num_masks: also those without a run.
        num_pixels: of the image.
    """
    per_mask = np.bincount(runs.owner, minlength=num_masks)
    last_run = np.cumsum(per_mask) - 1
    ends_inside = (per_mask > 0) & (np.append(runs.stop, 0)[last_run] == num_pixels)
    num_lengths = 2 * per_mask + ~ends_inside
    begin = np.cumsum(num_lengths) - num_lengths
    bounds = np.full(int(num_lengths.sum()), num_pixels, dtype=np.int64)
    place = begin[runs.owner] + 2 * (np.arange(len(runs.owner)) - (last_run + 1 - per_mask)[runs.owner])
    bounds[place], bounds[place + 1] = runs.start, runs.stop

    lengths = np.diff(bounds, prepend=0)
    lengths[begin] = bounds[begin]
    numbers = lengths.copy()
    nth = np.arange(len(lengths)) - np.repeat(begin, num_lengths)
    numbers[2:] -= np.where(nth[2:] > 2, lengths[:-2], 0)

    magnitude = np.where(numbers < 0, ~numbers, numbers)
    num_digits = np.frexp(magnitude.astype(np.float64))[1] // 5 + 1  # of bit length + sign, rounded up
    which = np.repeat(np.arange(len(numbers)), num_digits)
    first_digit = np.cumsum(num_digits) - num_digits
    digit = np.arange(len(which)) - first_digit[which]
    more = digit + 1 < num_digits[which]
    text = (((numbers[which] >> (5 * digit)) & 31) + 32 * more + 48).astype(np.uint8).tobytes()
    cuts = np.append(first_digit, len(which))[np.append(begin, len(numbers))].tolist()
    return tuple(text[left:right] for left, right in pairwise(cuts))


def runs_of_coco(rle: Sequence[bytes], num_pixels: int) -> Runs:
    """The runs of all masks from COCO's compressed counts, see `runs_to_coco`.

    Args:
        rle: compressed counts of each mask.
        num_pixels: height times width.

    Returns:
        Runs of all masks, in their order.
    """
    digits = np.frombuffer(b"".join(rle), dtype=np.uint8) - np.uint8(48)
    last = np.flatnonzero(digits < 32)
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    num_digits = last - first + 1
    numbers = (digits[first] & 31).astype(np.int64)
    for place in range(1, int(num_digits.max(initial=0))):
        longer = np.flatnonzero(num_digits > place)
        numbers[longer] |= (digits[first[longer] + place] & 31).astype(np.int64) << (5 * place)
    numbers -= (digits[last] >> 4).astype(np.int64) << (5 * num_digits)

    num_lengths = np.diff(np.searchsorted(last, np.cumsum([0, *map(len, rle)])))
    begin = np.cumsum(num_lengths) - num_lengths
    nth = np.arange(len(numbers)) - np.repeat(begin, num_lengths)
    # Sums over every second number; of each mask, those before its second and its third are taken off again.
    sums = np.concatenate([[0], numbers])  # one ahead: entry i + 1 is that of number i
    sums[1::2], sums[2::2] = np.cumsum(numbers[::2]), np.cumsum(numbers[1::2])
    before = np.where(nth % 2 == 1, np.repeat(sums[begin], num_lengths), np.repeat(sums[begin + 1], num_lengths))
    lengths = sums[1:] - before
    lengths[begin] = numbers[begin]
    stop = np.cumsum(lengths)
    of_mask = np.flatnonzero((nth % 2 == 1) & (lengths > 0))
    owner = np.repeat(np.arange(len(rle)), num_lengths)[of_mask]
    stop = stop[of_mask] - owner * num_pixels
    return Runs(owner, stop - lengths[of_mask], stop)
