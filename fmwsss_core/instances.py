"""Outlined things to a map of class indices: ground truth of data sets that have polygons or run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fmwsss.core.images import ImageError
from fmwsss.core.labels import IGNORE


def paint_instances(
    instances: Sequence[Mapping[str, Any]], height_px: int, width_px: int
) -> UInt8[np.ndarray, "height width"]:
    """A label map of instances, painted from the large to the small, so that what lies on something else is seen.

    What is ignored (crowds) lies under everything else: where a crowd and a thing are outlined, the thing is known.

    Args:
        instances: each with `label` (class index, 255 for what is ignored) and `segmentation`: polygons as lists of
            x, y in pixels, or run lengths as COCO has them, compressed or not.
        height_px: of the image.
        width_px: of the image.

    Raises:
        ImageError: an outline is none, or is of an image of another size.
    """
    # Only data sets with outlines need it, and every decoder starts with this module.
    from pycocotools import mask

    coco_mask: Any = mask  # its stubs do not know polygons and run lengths as COCO writes them

    painted = np.zeros((height_px, width_px), np.uint8)
    masks = []
    for instance in instances:
        told = instance["segmentation"]
        try:
            if isinstance(told, Mapping):
                if list(told["size"]) != [height_px, width_px]:
                    given = f"{told['size'][1]} x {told['size'][0]}"
                    raise ImageError(f"an outline is of {given} pixels, and the image of {width_px} x {height_px}")
                counts = told["counts"]
                if isinstance(counts, str):
                    rle = {"size": [height_px, width_px], "counts": counts.encode()}
                    if coco_mask.area(rle) > height_px * width_px:
                        raise ImageError("an outline has more pixels than the image")
                else:
                    if sum(counts) != height_px * width_px or min(counts, default=0) < 0:
                        raise ImageError("an outline's run lengths do not fill the image")
                    rle = coco_mask.frPyObjects(told, height_px, width_px)
            else:
                polygons = [[float(value) for value in polygon] for polygon in told if len(polygon) >= 6]
                if not polygons:
                    continue
                rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height_px, width_px))
        except ImageError:
            raise
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ImageError(f"an outline can't be read: {' '.join(str(error).split())}") from error
        masks.append((instance["label"], float(coco_mask.area(rle)), coco_mask.decode(rle)))
    # Ties keep the order of the file, the later on top.
    for label, _, own_mask in sorted(masks, key=lambda own: (own[0] != IGNORE, -own[1])):
        painted[own_mask > 0] = label
    return painted
