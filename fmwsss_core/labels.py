"""Label maps: the ignore index and the palette of their PNGs."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8


def _voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's colours: bits 0, 3, 6 of the index are the high bits of red, bits 1, 4, 7 of green, and so on."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    index = np.arange(256)
    for level in range(8):
        for channel in range(3):
            bit = (index >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()


IGNORE = 255
