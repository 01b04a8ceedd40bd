"""Class maps of images with a frozen CLIP and text embeddings, and the same refined by affinity (method M2, M11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from fmwsss.core.class_maps.attention_affinity import AffinityMap, BoxOn, refine
from fmwsss.core.class_maps.maps import ClassMaps, mixed
from fmwsss.core.class_maps.softmax_gradcam import normalise
from fmwsss.core.class_maps.sources import GradCam, MapSource, Mixture, View, num_blocks_of
from fmwsss.core.clip.frozen_clip import NUM_ATTENTION_BLOCKS, FrozenClip, ImageFeatures
from fmwsss.core.clip.last_block import ATTENTION_AT_ONCE
from fmwsss.core.errors import InputError
from fmwsss.core.resize import upsample

# What is told of patches beside their maps: the embedding of each alone, its token before the last block, or both.
Looks = Literal["patches", "tokens", "both"]


def patch_grid(clip: FrozenClip, height_px: int, width_px: int) -> tuple[int, int]:
    """Patches down and across of an image of this size; images of one grid can go through the image tower together.

    Args:
        clip: whose patch size counts.
        height_px: of the image.
        width_px: of the image.

    Returns:
        Rows and columns of the grid.
    """
    return -(-height_px // clip.patch_size), -(-width_px // clip.patch_size)


def bound_of(clip: FrozenClip, grid: tuple[int, int], max_side_px: int | None) -> float:
    """The scale at which the longer side of images of a patch grid is at most `max_side_px`, 1 where it is already.

    Args:
        clip: whose patch size counts.
        grid: rows and columns of patches.
        max_side_px: of what CLIP sees; None for no bound.

    Returns:
        0 to 1.
    """
    return 1.0 if max_side_px is None else min(1.0, max_side_px / (max(grid) * clip.patch_size))


def images_at_once(
    clip: FrozenClip, grid: tuple[int, int], scales: Sequence[float], max_side_px: int | None, most: int
) -> int:
    """How many images of a patch grid go through the image tower together: attention grows with the square of a grid.

    Args:
        clip: the frozen CLIP.
        grid: as `patch_grid` gives it.
        scales, max_side_px: as in `map_classes`.
        most: the greatest answer.
    """
    scale = max(scales) * bound_of(clip, grid, max_side_px)
    num_tokens = 1 + round(grid[0] * scale) * round(grid[1] * scale)
    return min(most, max(1, ATTENTION_AT_ONCE // (clip.num_heads * num_tokens**2)))


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
    source: MapSource | Mixture | None = None,
    flip: bool = False,
    *,
    max_side_px: int | None = None,
    box_on: BoxOn = "map",
    affinity_map: AffinityMap = "normalised",
    given: Sequence[Sequence[ClassMaps]] | None = None,
    looks: Looks | None = None,
) -> list[ClassMaps]:
    """Maps of the classes that images show.

    Args:
        clip: the frozen CLIP.
        images: RGB, of one patch grid (`patch_grid`); they go through the image tower together.
        class_indices: of each image, ascending (1 to the number of classes).
        foreground: text embeddings of the classes.
        background: text embeddings of the surroundings.
        box_threshold: as in `attention_affinity.refine`; so is `num_sinkhorn`.
        scales: of the images; with more than one, maps are made at each and averaged on the finest grid.
        num_attention_blocks: whose attention makes the affinity, counted from the last; 0: there is no affinity.
        source: of the maps; None: Softmax-GradCAM.
        flip: whether the maps of the mirrored images are averaged in.
        max_side_px: images with a longer side are made smaller before the image tower, so that this is about its
            length, to a patch; `scales` are of that. None: images as they are.
        box_on: as in `attention_affinity.refine`.
        affinity_map: whether the affinity spreads the normalised maps, or the raw ones of a source that has any.
        given: of each image, the maps that somebody else made, for a mixture with weights for them.
        looks: what is told of each patch beside the maps; None: nothing.

    Raises:
        ValueError: images of different patch grids, or not as many given maps as the mixture has weights for.
    """
    mixture = source if isinstance(source, Mixture) else Mixture((source or GradCam(),), (1.0,))
    grids = {patch_grid(clip, *image.shape[:2]) for image in images}
    if len(grids) != 1:
        raise InputError(f"Images of one patch grid are needed, not of {sorted(grids)}.")
    present = torch.zeros(len(images), len(foreground), dtype=torch.bool, device=clip.device)
    for row, indices in enumerate(class_indices):
        present[row, [index - 1 for index in indices]] = True
    pixels = [torch.from_numpy(image).to(clip.device).permute(2, 0, 1)[None] for image in images]
    blocks = tuple(sorted(mixture.blocks_kept(num_blocks_of(clip))))
    views, plain, bound = [], None, bound_of(clip, grids.pop(), max_side_px)
    for scale in sorted(scales):
        at_scale = torch.cat([clip.preprocess(image, scale * bound) for image in pixels])
        for is_mirrored in (False, True) if flip else (False,):
            seen = at_scale.flip(3) if is_mirrored else at_scale
            view = View(clip, seen, present, foreground, background, blocks, num_attention_blocks)
            plain = view if scale == 1 and not is_mirrored else plain
            affinity = (box_threshold, num_sinkhorn, box_on, affinity_map)
            views.append([_maps_of(view, own, affinity, is_mirrored) for own in mixture.sources])
    found = []
    for number in range(len(images)):
        parts = [_averaged([view[part][number] for view in views]) for part in range(len(mixture.sources))] + list(
            given[number] if given else ()
        )
        found.append(mixed(parts, mixture.weights))
    if looks is None:
        return found
    features = (
        plain.features if plain else clip.encode_image(torch.cat([clip.preprocess(image, bound) for image in pixels]))
    )
    return [replace(own, looks=told) for own, told in zip(found, _looks_of(features, looks), strict=True)]


def _looks_of(features: ImageFeatures, looks: Looks) -> Float32[np.ndarray, "images grid_height grid_width width"]:
    told = {"patches": features.patches, "tokens": features.last_block_input[:, 1:]}
    chosen = torch.cat([told[name] for name in (told if looks == "both" else [looks])], dim=2)
    return chosen.float().unflatten(1, features.grid).cpu().numpy()


def _maps_of(
    view: View, source: MapSource, affinity: tuple[float | None, int, BoxOn, AffinityMap], is_mirrored: bool
) -> list[ClassMaps]:
    """The maps of each image of a view, upright again."""
    found = source.maps(view)
    image = view.present.nonzero()[:, 0]
    box_threshold, num_sinkhorn, box_on, affinity_map = affinity
    spread = found.maps if affinity_map == "normalised" or found.raw is None else found.raw

    def upright(maps: Tensor) -> np.ndarray:
        on_grid = maps.float().reshape(-1, *view.grid)
        return (on_grid.flip(2) if is_mirrored else on_grid).cpu().numpy()

    maps = []
    for number in range(len(view.present)):
        own, refined, background = found.maps[image == number], None, None
        if view.num_attention_blocks:
            assert view.features.attention is not None
            attention = view.features.attention[number]
            arguments = (attention, own, view.grid, box_threshold, num_sinkhorn)
            refined = upright(normalise(refine(*arguments, box_on=box_on, spread=spread[image == number])))
        if found.background is not None:
            background = upright(found.background[number])[0]
        maps.append(ClassMaps(upright(own), refined, background))
    return maps


def _averaged(maps: Sequence[ClassMaps]) -> ClassMaps:
    """The mean of the maps of one image, coarsest first, on the grid of the last; 0 to 1 again."""
    if len(maps) == 1:
        return maps[0]

    def mean(of_views: list[Float32[np.ndarray, "maps _ _"]]) -> Float32[np.ndarray, "maps height width"]:
        shape = of_views[-1].shape[1:]
        return np.mean([upsample(own, *shape) for own in of_views], axis=0)

    def scaled(total: Float32[np.ndarray, "maps height width"]) -> Float32[np.ndarray, "maps height width"]:
        return normalise(torch.from_numpy(total).flatten(1)).numpy().reshape(total.shape)

    refined = [own.refined_cam for own in maps if own.refined_cam is not None]
    background = [own.background[None] for own in maps if own.background is not None]
    return ClassMaps(
        scaled(mean([own.cam for own in maps])),
        scaled(mean(refined)) if refined else None,
        mean(background)[0] if background else None,
    )
