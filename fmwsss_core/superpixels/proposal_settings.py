"""Numbers of the proposal stage (docs/method.md, M5.1); no torch and no scipy, so that drivers can read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fmwsss.core.errors import InputError

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ProposalSettings:
    """Numbers of the proposal stage. The defaults are those of FMA-WSSS for SAM ViT-H, without its second crop layer.

    Attributes:
        points_per_side: points of a side of the square grid that prompts SAM on the whole image (M5.1).
        points_per_batch: prompts decoded at once; None = what suits the device (few on a CPU, whose caches decide;
            as many as its free memory carries on a GPU). Halved and tried again where memory runs out.
        precision: of the image encoder's matrix products; the decoder and all thresholds are float32 whatever it is.
        compiled: run the image encoder, whose shapes never change, through torch.compile; it needs a C++ compiler.
        predicted_iou_threshold: keep masks whose predicted IoU is above it; 0 = keep all (M5.1).
        stability_threshold: keep masks whose stability reaches it; 0 = keep all (M5.1).
        stability_offset: distance in logits of the two thresholds that stability compares (M5.1).
        box_nms_threshold: of two boxes with a larger IoU, the one with the lower score goes (M5.1).
        crop_layers: layer i adds (2^i)^2 crops of the image, each encoded on its own; authors 1 (M5.1).
        crop_downscale: layer i has points_per_side / crop_downscale^i points a side (M5.1).
        min_region_area_px: smaller holes are filled and smaller islands removed; 0 = leave masks as they are (M5.1).
        whole_bonus: added to the predicted IoU of whole masks for the threshold only; 0 = off (M5.1).
        whole_priority: added to the score of whole masks wherever boxes are suppressed; 0 = off (M5.1).
        compat: forget the priority between crops and after the clean-up, as the authors' program does (M5.1).
        occupation_threshold: drop a mask if a mask of a higher level covers this share of it; None = off (M5.1).
    """

    points_per_side: int = 32
    points_per_batch: int | None = None
    precision: Precision = "float32"
    compiled: bool = False
    predicted_iou_threshold: float = 0.86
    stability_threshold: float = 0.92
    stability_offset: float = 1.0
    box_nms_threshold: float = 0.7
    crop_layers: int = 0
    crop_downscale: int = 2
    min_region_area_px: int = 100
    whole_bonus: float = 0.1
    whole_priority: float = 1.0
    compat: bool = False
    occupation_threshold: float | None = 0.3

    def __post_init__(self) -> None:
        for name in ("points_per_side", "crop_downscale"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.points_per_batch is not None and self.points_per_batch < 1:
            raise InputError(f"points_per_batch must be at least 1, or None, got {self.points_per_batch}.")
        for name in ("stability_offset", "crop_layers", "min_region_area_px", "whole_bonus", "whole_priority"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("predicted_iou_threshold", "stability_threshold", "box_nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if self.occupation_threshold is not None and not 0 < self.occupation_threshold <= 1:
            raise InputError(
                f"occupation_threshold must be above 0 and at most 1, or None, got {self.occupation_threshold}."
            )
        if self.points_in_layer(self.crop_layers) < 1:
            raise InputError(
                f"points_per_side {self.points_per_side} leaves no point for crop layer {self.crop_layers} "
                f"at crop_downscale {self.crop_downscale}."
            )

    def points_in_layer(self, layer: int) -> int:
        """Points a side of the grid for the crops of one layer; layer 0 is the whole image."""
        return int(self.points_per_side / self.crop_downscale**layer)
