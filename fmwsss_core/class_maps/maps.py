"""Class maps of one image, and the weighted mean of those of several sources; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from fmwsss.core.resize import upsample


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """The maps of one image on a grid, usually CLIP's patches, one for each of its classes, 0 to 1.

    Attributes:
        cam: class maps as their source makes them.
        refined_cam: the same after the attention-based affinity; None where that was not asked for.
        background: a map of the surroundings, 0 to 1; None from a source that has none.
        looks: what CLIP says of each patch at scale 1, whatever the classes; None where that was not asked for.
    """

    cam: Float32[np.ndarray, "present grid_height grid_width"]
    refined_cam: Float32[np.ndarray, "present grid_height grid_width"] | None
    background: Float32[np.ndarray, "grid_height grid_width"] | None = None
    looks: Float32[np.ndarray, "rows columns width"] | None = None


def min_max(maps: Float[np.ndarray, "maps height width"]) -> Float32[np.ndarray, "maps height width"]:
    """Each map from 0 to 1; a map without contrast becomes 0."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    span = np.where(high > low, high - low, 1)
    return ((maps - low) / span).astype(np.float32)


def mixed(parts: Sequence[ClassMaps], weights: Sequence[float]) -> ClassMaps:
    """Weighted means of the maps of several sources, on the finest of their grids; each 0 to 1 again.

    Args:
        parts: of one image and the same classes. Where affinity was asked for, one without refined maps (given ones)
            stands for them itself. The background is the mean of those parts that have one.
        weights: of the parts, larger than 0.
    """
    if len(parts) == 1:
        return parts[0]
    shape = max((part.cam.shape[1:] for part in parts), key=lambda shape: shape[0] * shape[1])

    def mean(of_parts: Sequence[np.ndarray], own: Sequence[float]) -> np.ndarray:
        """The weighted mean of maps, on the grid of the largest.

        Args:
            of_parts: each (classes, its grid height, its grid width).
            own: weight of each.
        """
        maps = [weight * upsample(part, *shape) for part, weight in zip(of_parts, own, strict=True)]
        return np.sum(maps, axis=0) / np.float32(sum(own))

    has_refined = any(part.refined_cam is not None for part in parts)
    refined = [part.cam if part.refined_cam is None else part.refined_cam for part in parts]
    backgrounds = [
        (part.background[None], weight)
        for part, weight in zip(parts, weights, strict=True)
        if part.background is not None
    ]
    return ClassMaps(
        min_max(mean([part.cam for part in parts], weights)),
        min_max(mean(refined, weights)) if has_refined else None,
        mean(*zip(*backgrounds, strict=True))[0] if backgrounds else None,
    )
