"""Mask proposals: segment-anything's automatic generator with the three changes of FMA-WSSS (method M5.1).

The steps and their order are those of `SamAutomaticMaskGenerator`. What differs is what is computed, and when: the
image's part of the mask decoder once per image (`mask_decoder`); masks are upscaled only once their predicted IoU
passed, and enlarged in one step (`enlarge`); candidates wait for the box NMS as small logits, so that memory does not
grow with the image; what comes after the network needs no torch and is done elsewhere (`proposals`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes, is_box_near_crop_edge
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from torchvision.ops import nms

from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.errors import InputError
from fmwsss.core.superpixels.mask_upscaling import Enlarger
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.postprocess import WHOLE, Detections, finish, pack_masks
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam_mask_decoder import NUM_LEVELS, DecodedMasks, PointDecoder

_CROP_OVERLAP = 512 / 1500  # share of the shorter side; segment-anything's default
# Image tokens of so many points pass through a core's caches; measured best with 4,096 tokens of 256 channels.
_CPU_BATCH = 2
_MAX_BATCH = 256
# Tensors of the size of a point's image tokens that are alive at once in the decoder, with room to spare.
_LIVE_TENSORS = 16
# Pixels of enlarged masks worked on at once: a core's second cache, or a small part of a GPU.
_CPU_CHUNK_PX, _GPU_CHUNK_PX = 1 << 18, 1 << 26


class EncodedImage(NamedTuple):
    """What the mask decoder needs of an image."""

    features: Float[Tensor, "1 channels feature_height feature_width"]
    input_size: tuple[int, int]  # (height, width) of the resized image inside the encoder's square input
    image_size: tuple[int, int]  # (height, width) before the resize


class DecodedCrop(NamedTuple):
    """One crop of an image and the masks that the network gave for its points, before anything else is asked of them.

    Attributes:
        box: (left, top, right, bottom) in the image.
        input_size: (height, width) of the crop inside the encoder's square input.
        masks: in batches; decoded as they are read.
    """

    box: tuple[int, int, int, int]
    input_size: tuple[int, int]
    masks: Iterable[DecodedMasks]


class _Candidates(NamedTuple):
    """Masks of one crop before suppression; `logits` at the decoder's resolution, `boxes` in the crop's frame."""

    logits: Float[Tensor, "candidates low_height low_width"]
    level: Int[Tensor, " candidates"]
    predicted_iou: Float[Tensor, " candidates"]
    stability: Float[Tensor, " candidates"]
    boxes: Int[Tensor, "candidates 4"]

    def select(self, kept: Shaped[Tensor, " index"]) -> _Candidates:
        return _Candidates(*(values[kept] for values in self))


def propose(sam: Sam, image: UInt8[np.ndarray, "height width 3"], settings: ProposalSettings) -> Superpixels:
    """Proposes superpixels for one image of any size: `detect`, then `proposals.finish`.

    Differs from `SamAutomaticMaskGenerator` by whole_bonus, whole_priority and occupation_threshold alone (M5.1), and
    in that a mask without a pixel is never returned. The level keeps its priority in all three suppressions: within a
    crop, between crops, and after small regions were removed (the FMA-WSSS program forgets it in the last two; so does
    `compat`).

    Equal to the original up to the rounding of the mask decoder (see `mask_decoder`): a pixel whose logit is 1e-4 from
    the threshold may fall on the other side, as it may when the original's own points_per_batch changes.

    Args:
        sam: any segment-anything model, in eval mode, on any device. A prompt must give three masks.
        image: RGB.
        settings: see there.

    Returns:
        as `proposals.finish`.

    Raises:
        ValueError: the model does not give three masks for a prompt.
        torch.OutOfMemoryError: there is too little memory for a single point.
    """
    return finish(detect(sam, image, settings), settings)


@torch.inference_mode()
def detect(sam: Sam, image: UInt8[np.ndarray, "height width 3"], settings: ProposalSettings) -> Detections:
    """The network's part of `propose`, up to the box NMS within every crop; see there for arguments and errors.

    Args:
        sam: the network.
        image: RGB.
        settings: see `ProposalSettings`.

    Returns:
        Masks of all crops, before the suppression between them.
    """
    return detect_decoded(sam, image.shape[:2], decode_crops(sam, image, settings), settings)


@torch.inference_mode()
def decode_crops(
    sam: Sam, image: UInt8[np.ndarray, "height width 3"], settings: ProposalSettings
) -> Iterator[DecodedCrop]:
    """What of `detect` is the network: every crop encoded, the points of its grid decoded.

    Of the settings only those of grids and crops, `whole_bonus` and `predicted_iou_threshold` (0 keeps all masks) and
    how the network runs have a part in it.

    Args:
        sam: the network.
        image: RGB.
        settings: see `ProposalSettings`.

    Raises:
        ValueError: see `propose`.
    """
    if sam.mask_decoder.num_multimask_outputs != NUM_LEVELS:
        raise InputError(
            f"This SAM gives {sam.mask_decoder.num_multimask_outputs} masks for a prompt; "
            "proposals need 3 (sub-part, part, whole)."
        )
    height, width = image.shape[:2]
    batch, full = None, cast("Tensor", sam.pixel_mean).dtype
    for box, layer in zip(*generate_crop_boxes((height, width), settings.crop_layers, _CROP_OVERLAP), strict=True):
        left, top, right, bottom = box
        if right <= left or bottom <= top:  # an image of a few pixels cannot be cut any further
            continue
        with _precision(sam, settings):
            encoded = encode_image(sam, image[top:bottom, left:right], settings.compiled)
        # The decoder stays in full precision: its scores are compared with thresholds, and other masks would be left.
        encoded = encoded._replace(features=encoded.features.to(full))
        # What an image's first crop finds to fit, the others keep.
        batch = batch or FittingBatch(settings.points_per_batch or _automatic_batch(encoded.features))
        points = _grid(encoded, settings.points_in_layer(layer), sam.device)
        masks = _decode(sam, encoded, points, settings, batch)
        yield DecodedCrop((left, top, right, bottom), encoded.input_size, masks)


@torch.inference_mode()
def detect_decoded(
    sam: Sam, image_size: tuple[int, int], crops: Iterable[DecodedCrop], settings: ProposalSettings
) -> Detections:
    """What of `detect` follows the network: enlargement, stability, edges of crops and the box NMS within every crop.

    Args:
        sam: whose masks these are.
        image_size: (height, width).
        crops: masks that passed their predicted IoU.
        settings: see there.
    """
    crop_boxes, of_crop, parts, bits = [], [], [], []
    for crop in crops:
        survivors, masks = _detect_in_crop(sam, crop, image_size, settings)
        of_crop.append(np.full(len(masks), len(crop_boxes), dtype=np.int16))
        crop_boxes.append(crop.box)
        parts.append(survivors)
        bits += masks
    level, predicted_iou, stability = (
        torch.cat(values).cpu().numpy()
        for values in zip(*((part.level, part.predicted_iou, part.stability) for part in parts), strict=True)
    )
    return Detections(
        *image_size,
        tuple(crop_boxes),
        np.concatenate(of_crop),
        level.astype(np.int8),
        predicted_iou.astype(np.float32),
        stability.astype(np.float32),
        tuple(bits),
    )


@torch.inference_mode()
def encode_image(sam: Sam, image: UInt8[np.ndarray, "height width 3"], compiled: bool = False) -> EncodedImage:
    """Runs SAM's image encoder on an image or a crop: longest side resized to the encoder's input, the rest padded.

    Args:
        sam: the network.
        image: RGB.
        compiled: whether the encoder is compiled by torch.

    Returns:
        Features, and sizes before and after.
    """
    height, width = image.shape[:2]
    input_height, input_width = ResizeLongestSide.get_preprocess_shape(height, width, sam.image_encoder.img_size)
    # The short side of a very long image would round to 0.
    input_height, input_width = max(input_height, 1), max(input_width, 1)
    resized = np.array(Image.fromarray(image).resize((input_width, input_height), Image.Resampling.BILINEAR))
    pixels = torch.as_tensor(resized, device=sam.device).permute(2, 0, 1)[None]
    encoder = _compiled(sam.image_encoder) if compiled else sam.image_encoder
    features = encoder(sam.preprocess(pixels))
    return EncodedImage(features, (input_height, input_width), (height, width))


@functools.lru_cache(maxsize=2)
def _compiled(encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(encoder, dynamic=False)


def _precision(sam: Sam, settings: ProposalSettings) -> torch.autocast:
    enabled = settings.precision != "float32"
    return torch.autocast(sam.device.type, dtype=getattr(torch, settings.precision), enabled=enabled)


def _grid(encoded: EncodedImage, points_per_side: int, device: torch.device) -> Float[Tensor, "points 2"]:
    (height, width), (input_height, input_width) = encoded.image_size, encoded.input_size
    # Double precision, and to pixels of the crop first, as the original does: otherwise the last bit differs.
    in_crop = build_point_grid(points_per_side) * np.array([width, height])
    return torch.as_tensor(in_crop * np.array([input_width / width, input_height / height]), device=device)


def _detect_in_crop(
    sam: Sam, crop: DecodedCrop, image_size: tuple[int, int], settings: ProposalSettings
) -> tuple[_Candidates, list[bytes]]:
    """What is left of a crop after the thresholds, its edges and the box NMS; and its masks as bits."""
    left, top, right, bottom = crop.box
    height, width = bottom - top, right - left
    chunk = max(1, (_CPU_CHUNK_PX if sam.device.type == "cpu" else _GPU_CHUNK_PX) // (height * width))

    enlarger, found = None, []
    for decoded in crop.masks:
        _, low_height, low_width = decoded.logits.shape
        enlarger = enlarger or Enlarger(sam, (low_height, low_width), crop.input_size, (height, width))
        for begin in range(0, len(decoded.level), chunk):
            part = DecodedMasks(*(values[begin : begin + chunk] for values in decoded))
            found.append(_passing(part, enlarger, settings))
    if enlarger is None:
        empty = torch.zeros(0, device=sam.device)
        return _Candidates(empty[:, None, None], empty, empty, empty, empty[:, None]), []
    candidates = _Candidates(*(torch.cat(values) for values in zip(*found, strict=True)))
    at_crop_edge = is_box_near_crop_edge(candidates.boxes, list(crop.box), [0, 0, image_size[1], image_size[0]])
    inside = (~at_crop_edge).nonzero()[:, 0]
    score = candidates.predicted_iou + settings.whole_priority * (candidates.level == WHOLE)
    order = inside[torch.argsort(score.double()[inside], descending=True, stable=True)]
    # Ranks in place of scores: `nms` sorts again, and would want boxes as exact as the scores are.
    rank = torch.arange(len(order), 0, -1, dtype=torch.float32, device=sam.device)
    survivors = candidates.select(order[nms(candidates.boxes[order].float(), rank, settings.box_nms_threshold)])
    bits: list[bytes] = []
    for begin in range(0, len(survivors.level), chunk):
        bits += _packed(enlarger.masks(survivors.logits[begin : begin + chunk]))
    return survivors, bits


def _packed(masks: Bool[Tensor, "masks width height"]) -> list[bytes]:
    """As `pack_masks`; on a GPU packed there, so that an eighth of the bytes comes from it."""
    if masks.device.type == "cpu":
        return pack_masks(masks.numpy())
    return [row.tobytes() for row in pack_bits(masks.flatten(1)).cpu().numpy()]


def pack_bits(bits: Bool[Tensor, "rows bits"]) -> UInt8[Tensor, "rows bytes"]:
    """numpy's `packbits` of every row, on the tensor's device: the first bit is the highest, 0 after the last."""
    eights = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    packed = torch.zeros_like(eights[..., 0], dtype=torch.uint8)
    for place in range(8):
        packed |= eights[..., place].to(torch.uint8) << (7 - place)
    return packed


@torch.inference_mode()
def _decode(
    sam: Sam, encoded: EncodedImage, points: Float[Tensor, "points 2"], settings: ProposalSettings, batch: FittingBatch
) -> Iterator[DecodedMasks]:
    """The masks of all points whose predicted IoU passed, in batches; without those that have none."""
    wholes = (torch.arange(NUM_LEVELS, device=points.device) == WHOLE) * settings.whole_bonus

    def passes(predicted_iou: Tensor) -> Tensor:
        if settings.predicted_iou_threshold == 0:
            return torch.ones_like(predicted_iou, dtype=torch.bool)
        return predicted_iou + wholes > settings.predicted_iou_threshold

    decoder = PointDecoder(sam, encoded.features)
    for decoded in batch.run(lambda some: decoder(some, passes), points):
        if len(decoded.level) > 0:
            yield decoded


def _automatic_batch(features: Float[Tensor, "1 channels height width"]) -> int:
    """Points in a batch: a power of two, so that a little less free memory does not change the last bits."""
    if features.device.type != "cuda":
        return _CPU_BATCH
    free_bytes, _ = torch.cuda.mem_get_info(features.device)
    per_point_bytes = _LIVE_TENSORS * 4 * features.numel()
    return min(_MAX_BATCH, 1 << max(0, int(free_bytes / 2 / per_point_bytes).bit_length() - 1))


def _passing(masks: DecodedMasks, enlarger: Enlarger, settings: ProposalSettings) -> _Candidates:
    """Stability and boxes at the crop's own size, the stability threshold applied, masks without a pixel dropped."""
    measured = enlarger.measure(masks.logits, settings.stability_offset)
    stability = measured.above.int() / measured.below.int()
    passed = measured.filled
    if settings.stability_threshold > 0:
        passed = passed & (stability >= settings.stability_threshold)
    found = _Candidates(masks.logits, masks.level, masks.predicted_iou, stability, measured.boxes)
    return found.select(passed.nonzero()[:, 0])  # one wait for the card instead of one for each tensor
