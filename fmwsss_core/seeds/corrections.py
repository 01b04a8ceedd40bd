"""What a person painted, laid over a seed (docs/method.md, M5.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco

from fmwsss.core.seeds.sams import Seed, missing_classes
from fmwsss.core.superpixels.masks import Superpixels


@dataclass(frozen=True)
class PaintedRegion:
    """A region of an image, and the class that a person gave it.

    Attributes:
        height_px, width_px: of the image that it was painted on.
        rle: the region, as COCO's compressed run lengths.
        class_index: 0 is background.
    """

    height_px: int
    width_px: int
    rle: bytes
    class_index: int

    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its pixels."""
        decoded = coco.decode({"size": [self.height_px, self.width_px], "counts": self.rle})
        return np.asarray(decoded, dtype=bool)


def with_corrections(
    seed: Seed, superpixels: Superpixels, regions: Sequence[PaintedRegion], class_indices: Sequence[int]
) -> Seed:
    """A seed with regions painted over it, in their order; what a person said has confidence 1.

    A superpixel that is such a region gets its class too. A region of an image of another size (one that was replaced
    since) is passed over.

    Args:
        seed: as a program made it.
        superpixels: of the image.
        regions: what was painted, the latest last.
        class_indices: labels of the image; those without a pixel are missing.

    Returns:
        Another seed; the given one stays as it is.
    """
    labels, confidence = seed.labels.copy(), seed.confidence.copy()
    superpixel_class = seed.superpixel_class.copy()
    for region in regions:
        if (region.height_px, region.width_px) != labels.shape:
            continue
        mask = region.mask()
        labels[mask], confidence[mask] = region.class_index, 1
        # Seeds of other methods have no class for each superpixel.
        for index, rle in enumerate(superpixels.rle[: len(superpixel_class)]):
            if rle == region.rle:
                superpixel_class[index] = region.class_index
    return replace(
        seed,
        labels=labels,
        confidence=confidence,
        superpixel_class=superpixel_class,
        missing=missing_classes(labels, class_indices),
    )
