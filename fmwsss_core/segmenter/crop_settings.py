"""How training crops of the second stage are drawn (docs/method.md, M7); no torch, so that drivers can read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CropSettings:
    """How crops are drawn (docs/method.md, M7).

    Attributes:
        crop_px: side of the square crop in pixels; an image smaller than it is padded, with labels of 255 (M7).
        short_side_px: length of an image's short side at scale 1, in pixels (M7).
        scale_range: least and greatest scale (M7).
        category_cap: the greatest share that one class may have of a crop's labelled pixels; a crop above it is drawn
            again, 10 times at most; 1 takes every crop (M7).
        distort: whether brightness, contrast, saturation and hue change (M7).
        flip: whether half of the crops are mirrored (M7).
        paste: share of the crops that get a class of another crop of the batch laid over them; 0 for none.
    """

    crop_px: int = 512
    short_side_px: int = 512
    scale_range: tuple[float, float] = (0.5, 2.0)
    category_cap: float = 0.75
    distort: bool = True
    flip: bool = True
    paste: float = 0.0
