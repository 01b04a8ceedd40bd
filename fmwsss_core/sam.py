"""Mask proposals: segment-anything's automatic generator with the three changes of FMA-WSSS (method M5.1).

The steps and their order are those of `SamAutomaticMaskGenerator`; with the changes switched off the result is the
same. What differs is when things are computed: masks are enlarged to the image only once their predicted IoU passed,
candidates wait for the box NMS as small logits (memory does not grow with the image), and only survivors are encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped, UInt8
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
    generate_crop_boxes,
    is_box_near_crop_edge,
    uncrop_masks,
)
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import nms

from fmwsss_core.regions import clean_mask
from fmwsss_core.superpixels import Superpixels, encode_masks, occupation_filter

WHOLE = 2
_NUM_LEVELS = 3
_CROP_OVERLAP = 512 / 1500  # share of the shorter side; segment-anything's default


@dataclass(frozen=True)
class ProposalSettings:
    """Numbers of the proposal stage. The defaults are those of FMA-WSSS for SAM ViT-H, without its second crop layer.

    Attributes:
        points_per_side: the prompts of the whole image are a square grid of this many points a side.
        points_per_batch: prompts decoded at once; the knob for memory.
        predicted_iou_threshold: keep masks whose predicted IoU is above it; 0 = keep all.
        stability_threshold: keep masks whose stability reaches it; 0 = keep all.
        stability_offset: distance in logits of the two thresholds that stability compares.
        box_nms_threshold: of two boxes with a larger IoU, the one with the lower score goes.
        crop_layers: layer i adds (2^i)^2 crops of the image, each encoded on its own.
        crop_downscale: layer i has points_per_side / crop_downscale^i points a side.
        min_region_area_px: smaller holes are filled and smaller islands removed; 0 = leave masks as they are.
        whole_bonus: added to the predicted IoU of whole masks for the threshold only; 0 = off.
        whole_priority: added to the score of whole masks wherever boxes are suppressed; 0 = off.
        occupation_threshold: drop a mask if a mask of a higher level covers this share of it; None = off.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    predicted_iou_threshold: float = 0.86
    stability_threshold: float = 0.92
    stability_offset: float = 1.0
    box_nms_threshold: float = 0.7
    crop_layers: int = 0
    crop_downscale: int = 2
    min_region_area_px: int = 100
    whole_bonus: float = 0.1
    whole_priority: float = 1.0
    occupation_threshold: float | None = 0.3

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_downscale"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("stability_offset", "crop_layers", "min_region_area_px", "whole_bonus", "whole_priority"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("predicted_iou_threshold", "stability_threshold", "box_nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if self.occupation_threshold is not None and not 0 < self.occupation_threshold <= 1:
            raise ValueError(
                f"occupation_threshold must be above 0 and at most 1, or None, got {self.occupation_threshold}."
            )
        if self.points_in_layer(self.crop_layers) < 1:
            raise ValueError(
                f"points_per_side {self.points_per_side} leaves no point for crop layer {self.crop_layers} "
                f"at crop_downscale {self.crop_downscale}."
            )

    def points_in_layer(self, layer: int) -> int:
        """Points a side of the grid for the crops of one layer; layer 0 is the whole image."""
        return int(self.points_per_side / self.crop_downscale**layer)


class EncodedImage(NamedTuple):
    """What the mask decoder needs of an image."""

    features: Float[Tensor, "1 channels feature_height feature_width"]
    input_size: tuple[int, int]  # (height, width) of the resized image inside the encoder's square input
    image_size: tuple[int, int]  # (height, width) before the resize


class _Candidates(NamedTuple):
    """Masks of one crop before suppression; `logits` at the decoder's resolution, `boxes` in the crop's frame."""

    logits: Float[Tensor, "candidates low_height low_width"]
    level: Int[Tensor, " candidates"]
    predicted_iou: Float[Tensor, " candidates"]
    stability: Float[Tensor, " candidates"]
    boxes: Int[Tensor, "candidates 4"]

    def select(self, kept: Shaped[Tensor, " index"]) -> _Candidates:
        return _Candidates(*(values[kept] for values in self))


@torch.inference_mode()
def propose(sam: Sam, image: UInt8[np.ndarray, "height width 3"], settings: ProposalSettings) -> Superpixels:
    """Proposes superpixels for one image of any size.

    Differs from `SamAutomaticMaskGenerator` by whole_bonus, whole_priority and occupation_threshold alone (M5.1), and
    in that a mask without a pixel is never returned. The level keeps its priority in all three suppressions: within a
    crop, between crops, and after small regions were removed (the FMA-WSSS program forgets it in the last two).

    Args:
        sam: any segment-anything model, in eval mode, on any device. A prompt must give three masks.
        image: RGB.
        settings: see there.

    Returns:
        superpixels by level and then predicted IoU, both descending; with the occupation filter off, in the order of
        `SamAutomaticMaskGenerator`.

    Raises:
        ValueError: the model does not give three masks for a prompt.
    """
    if sam.mask_decoder.num_multimask_outputs != _NUM_LEVELS:
        raise ValueError(
            f"This SAM gives {sam.mask_decoder.num_multimask_outputs} masks for a prompt; "
            "proposals need 3 (sub-part, part, whole)."
        )
    height, width = image.shape[:2]
    parts, crop_areas = [], []
    for crop_box, layer in zip(*generate_crop_boxes((height, width), settings.crop_layers, _CROP_OVERLAP), strict=True):
        left, top, right, bottom = crop_box
        if right <= left or bottom <= top:  # an image of a few pixels cannot be cut any further
            continue
        encoded = encode_image(sam, image[top:bottom, left:right])
        candidates = _candidates(sam, encoded, crop_box, (height, width), settings.points_in_layer(layer), settings)
        parts.append(_survivors(sam, encoded, candidates, crop_box, (height, width), settings))
        crop_areas.append(np.full(len(parts[-1]), (right - left) * (bottom - top)))

    found = _concatenate(parts)
    if settings.crop_layers > 0:
        # Smaller crops show more detail.
        found = _suppress(found, 1 / np.concatenate(crop_areas), settings)
    if settings.min_region_area_px > 0:
        found, untouched = _without_small_regions(found, settings.min_region_area_px)
        # Half a point: an untouched mask goes before a cleaned one, but not before a whole mask at priority 1.
        found = _suppress(found, 0.5 * untouched, settings)
    if settings.occupation_threshold is None:
        return found
    by_level = np.lexsort((-found.predicted_iou, -found.level))
    return occupation_filter(found.select(by_level), settings.occupation_threshold)


@torch.inference_mode()
def encode_image(sam: Sam, image: UInt8[np.ndarray, "height width 3"]) -> EncodedImage:
    """Runs SAM's image encoder on an image or a crop: longest side resized to the encoder's input, the rest padded."""
    height, width = image.shape[:2]
    input_height, input_width = ResizeLongestSide.get_preprocess_shape(height, width, sam.image_encoder.img_size)
    # The short side of a very long image would round to 0.
    input_height, input_width = max(input_height, 1), max(input_width, 1)
    resized = np.array(Image.fromarray(image).resize((input_width, input_height), Image.Resampling.BILINEAR))
    pixels = torch.as_tensor(resized, device=sam.device).permute(2, 0, 1)[None]
    features = sam.image_encoder(sam.preprocess(pixels))
    return EncodedImage(features, (input_height, input_width), (height, width))


def _candidates(
    sam: Sam,
    encoded: EncodedImage,
    crop_box: list[int],
    image_size: tuple[int, int],
    points_per_side: int,
    settings: ProposalSettings,
) -> _Candidates:
    """Prompts a crop with a grid of points and keeps what passes the thresholds and the crop's edges."""
    (height, width), (input_height, input_width) = encoded.image_size, encoded.input_size
    # Double precision, and to pixels of the crop first, as the original does: otherwise the last bit differs.
    in_crop = build_point_grid(points_per_side) * np.array([width, height])
    points = torch.as_tensor(in_crop * np.array([input_width / width, input_height / height]), device=sam.device)
    dense_position = sam.prompt_encoder.get_dense_pe()
    batches = []
    for prompts in points.split(settings.points_per_batch):
        labels = torch.ones(len(prompts), 1, dtype=torch.int, device=sam.device)
        sparse, dense = sam.prompt_encoder(points=(prompts[:, None], labels), boxes=None, masks=None)
        logits, predicted_iou = sam.mask_decoder(
            image_embeddings=encoded.features,
            image_pe=dense_position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        logits, predicted_iou = logits.flatten(0, 1), predicted_iou.flatten()
        level = torch.arange(_NUM_LEVELS, device=sam.device).repeat(len(prompts))
        if settings.predicted_iou_threshold > 0:
            bonus = settings.whole_bonus * (level == WHOLE)
            passed = predicted_iou + bonus > settings.predicted_iou_threshold
            logits, predicted_iou, level = logits[passed], predicted_iou[passed], level[passed]
        for start in range(0, len(logits), settings.points_per_batch):
            chunk = slice(start, start + settings.points_per_batch)
            batches.append(_measure(sam, encoded, logits[chunk], level[chunk], predicted_iou[chunk], settings))
    if not batches:
        empty = torch.zeros(0, device=sam.device)
        return _Candidates(empty[:, None, None], empty.int(), empty, empty, torch.zeros(0, 4, dtype=torch.int64))
    found = _Candidates(*(torch.cat(values) for values in zip(*batches, strict=True)))
    at_crop_edge = is_box_near_crop_edge(found.boxes, crop_box, [0, 0, image_size[1], image_size[0]])
    return found.select(~at_crop_edge)


def _measure(
    sam: Sam,
    encoded: EncodedImage,
    logits: Float[Tensor, "masks low_height low_width"],
    level: Int[Tensor, " masks"],
    predicted_iou: Float[Tensor, " masks"],
    settings: ProposalSettings,
) -> _Candidates:
    """Stability and boxes at the crop's own size, the stability threshold applied, masks without a pixel dropped."""
    enlarged = _enlarge(sam, encoded, logits)
    stability = calculate_stability_score(enlarged, sam.mask_threshold, settings.stability_offset)
    masks = enlarged > sam.mask_threshold
    passed = masks.flatten(1).any(dim=1)
    if settings.stability_threshold > 0:
        passed &= stability >= settings.stability_threshold
    boxes = batched_mask_to_box(masks[passed]).long()  # float where there is no mask
    return _Candidates(logits[passed], level[passed], predicted_iou[passed], stability[passed], boxes)


def _survivors(
    sam: Sam,
    encoded: EncodedImage,
    candidates: _Candidates,
    crop_box: list[int],
    image_size: tuple[int, int],
    settings: ProposalSettings,
) -> Superpixels:
    """Box NMS within the crop; the survivors as masks of the whole image."""
    level = candidates.level.cpu().numpy().astype(np.int8)
    predicted_iou = candidates.predicted_iou.float().cpu().numpy()
    score = predicted_iou + settings.whole_priority * (level == WHOLE).astype(float)
    order = _box_nms(candidates.boxes.cpu().numpy(), score, settings)
    kept = candidates.select(torch.as_tensor(order, device=candidates.level.device))
    rle: list[bytes] = []
    for start in range(0, len(order), settings.points_per_batch):
        logits = kept.logits[start : start + settings.points_per_batch]
        masks = uncrop_masks(_enlarge(sam, encoded, logits) > sam.mask_threshold, crop_box, *image_size)
        # Transposed on the device: the run lengths are column-major.
        rle += encode_masks(masks.transpose(1, 2).contiguous().cpu().numpy().transpose(0, 2, 1))
    stability = kept.stability.float().cpu().numpy()
    return Superpixels(*image_size, level[order], predicted_iou[order], stability, tuple(rle))


def _enlarge(
    sam: Sam, encoded: EncodedImage, logits: Float[Tensor, "masks low_height low_width"]
) -> Float[Tensor, "masks height width"]:
    return sam.postprocess_masks(logits[None], encoded.input_size, encoded.image_size)[0]


def _concatenate(parts: list[Superpixels]) -> Superpixels:
    return Superpixels(
        parts[0].height_px,
        parts[0].width_px,
        np.concatenate([part.level for part in parts]),
        np.concatenate([part.predicted_iou for part in parts]),
        np.concatenate([part.stability for part in parts]),
        tuple(counts for part in parts for counts in part.rle),
    )


def _suppress(
    superpixels: Superpixels, score: Float64[np.ndarray, " superpixels"], settings: ProposalSettings
) -> Superpixels:
    whole = (superpixels.level == WHOLE).astype(float)
    return superpixels.select(_box_nms(superpixels.boxes_px(), score + settings.whole_priority * whole, settings))


def _box_nms(
    boxes: Int[np.ndarray, "boxes 4"], score: Float64[np.ndarray, " boxes"], settings: ProposalSettings
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes left by greedy suppression, best score first, equal scores in the order given."""
    order = np.argsort(-score, kind="stable")
    # Ranks instead of scores: torchvision wants scores as float32 like the boxes, where 1 + 1 / area is 1.
    rank = torch.arange(len(order), 0, -1, dtype=torch.float32)
    kept = nms(torch.as_tensor(boxes[order], dtype=torch.float32), rank, settings.box_nms_threshold)
    return order[kept.numpy()]


def _without_small_regions(
    superpixels: Superpixels, min_area_px: int
) -> tuple[Superpixels, Bool[np.ndarray, " superpixels"]]:
    """Cleans every mask; also says which ones needed no cleaning."""
    rle, untouched = list(superpixels.rle), np.ones(len(superpixels), dtype=bool)
    for index in range(len(superpixels)):
        cleaned, changed = clean_mask(superpixels.mask(index), min_area_px)
        if changed:
            rle[index], untouched[index] = encode_masks(cleaned[None])[0], False
    return replace(superpixels, rle=tuple(rle)), untouched
