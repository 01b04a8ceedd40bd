"""Decoded images as they travel between operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8


def pixels_of(row: dict[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The decoded image of a row of DECODED_PAYLOAD."""
    pixels = np.frombuffer(row["pixels"], dtype=np.uint8)
    return pixels.reshape(row["height_px"], row["width_px"], 3).copy()
