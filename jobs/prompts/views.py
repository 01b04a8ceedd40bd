"""The fixed views of an image whose CLIP features are cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fmwsss.core.prompts.augmentation import View


def view_of(
    image_id: str, height_px: int, width_px: int, number: int, random_seed: int, augment: dict[str, Any]
) -> View:
    """View `number` of an image: a function of image, number and seed, not of who draws it or after what.

    Args:
        image_id: unique in the run.
        height_px: of the image.
        width_px: of the image.
        number: of the view, from 0.
        random_seed: of the run.
        augment: arguments of `draw_view`.

    Returns:
        Sizes, place and colours.
    """
    from fmwsss.core.prompts.augmentation import draw_view

    key = int.from_bytes(image_id.encode(), "little")
    generator = np.random.default_rng((random_seed, number, key))
    return draw_view(height_px, width_px, generator, **augment)
