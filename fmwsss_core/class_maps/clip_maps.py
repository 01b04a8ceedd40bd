"""Class maps of images with a frozen CLIP and text embeddings: CAM, and CAM refined by affinity (method M2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from fmwsss.core.class_maps.attention_affinity import refine
from fmwsss.core.class_maps.softmax_gradcam import normalise, softmax_gradcam
from fmwsss.core.clip.frozen_clip import NUM_ATTENTION_BLOCKS, FrozenClip
from fmwsss.core.resize import upsample


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """The maps of one image on CLIP's patch grid, one for each of its classes, 0 to 1.

    Attributes:
        cam: class activation maps.
        refined_cam: the same after the attention-based affinity.
    """

    cam: Float32[np.ndarray, "present grid_height grid_width"]
    refined_cam: Float32[np.ndarray, "present grid_height grid_width"]


def patch_grid(clip: FrozenClip, height_px: int, width_px: int) -> tuple[int, int]:
    """Patches down and across that an image of this size is resized to."""
    return -(-height_px // clip.patch_size), -(-width_px // clip.patch_size)


@torch.no_grad()
def map_classes(
    clip: FrozenClip,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    class_indices: Sequence[Sequence[int]],
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
    box_threshold: float | None,
    num_sinkhorn: int,
    scales: Sequence[float] = (1.0,),
    num_attention_blocks: int = NUM_ATTENTION_BLOCKS,
) -> list[ClassMaps]:
    """Maps of the classes that images show.

    Args:
        clip: the frozen CLIP.
        images: RGB, of one patch grid (`patch_grid`); they go through the image tower together.
        class_indices: of each image, ascending (1 to the number of classes).
        foreground: text embeddings of the classes.
        background: text embeddings of the surroundings.
        box_threshold: as in `affinity.refine`; so is `num_sinkhorn`.
        scales: of the images; with more than one, maps are made at each and averaged on the finest grid.
        num_attention_blocks: whose attention makes the affinity, counted from the last.

    Raises:
        ValueError: images of different patch grids.
    """
    grids = {patch_grid(clip, *image.shape[:2]) for image in images}
    if len(grids) != 1:
        raise ValueError(f"Images of one patch grid are needed, not of {sorted(grids)}.")
    present = torch.zeros(len(images), len(foreground), dtype=torch.bool, device=clip.device)
    for row, indices in enumerate(class_indices):
        present[row, [index - 1 for index in indices]] = True
    text, affinity = (foreground, background), (box_threshold, num_sinkhorn, num_attention_blocks)
    pixels = [torch.from_numpy(image).to(clip.device).permute(2, 0, 1)[None] for image in images]
    at_scales = [
        _maps_at(clip, torch.cat([clip.preprocess(image, scale) for image in pixels]), present, *text, *affinity)
        for scale in sorted(scales)
    ]
    return [_averaged(own) for own in zip(*at_scales, strict=True)]


def _maps_at(
    clip: FrozenClip,
    pixels: Float[Tensor, "images 3 height width"],
    present: Bool[Tensor, "images classes"],
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
    box_threshold: float | None,
    num_sinkhorn: int,
    num_attention_blocks: int,
) -> list[ClassMaps]:
    features = clip.encode_image(pixels, num_attention_blocks)
    assert features.attention is not None
    block = clip.last_block(features.last_block_input)
    maps = softmax_gradcam(block, clip.logit_scale, foreground, background, present)
    cams = normalise(maps.cam)
    found = []
    for number, attention in enumerate(features.attention):
        own = cams[maps.image == number]
        refined = normalise(refine(attention, own, features.grid, box_threshold, num_sinkhorn))
        found.append(ClassMaps(*(x.float().reshape(-1, *features.grid).cpu().numpy() for x in (own, refined))))
    return found


def _averaged(maps: Sequence[ClassMaps]) -> ClassMaps:
    """The mean of the maps of one image, coarsest first, on the grid of the last; 0 to 1 again."""
    if len(maps) == 1:
        return maps[0]

    def mean(of_scales: list[Float32[np.ndarray, "present _ _"]]) -> Float32[np.ndarray, "present height width"]:
        shape = of_scales[-1].shape[1:]
        total = np.mean([upsample(own, *shape) for own in of_scales], axis=0)
        return normalise(torch.from_numpy(total).flatten(1)).numpy().reshape(total.shape)

    return ClassMaps(mean([own.cam for own in maps]), mean([own.refined_cam for own in maps]))
