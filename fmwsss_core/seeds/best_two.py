"""The best and the second of many class maps at every pixel, without all of them in memory (M5.2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8


class BestTwo:
    """The highest value and the second of each pixel, and whose the highest is, of maps that are seen one by one.

    Args:
        num_pixels: of each map.
        keep_second: whether more than the highest value is asked for.
    """

    def __init__(self, num_pixels: int, keep_second: bool = True) -> None:
        self.num_maps = 0
        self.first = np.zeros(num_pixels, dtype=np.float32)
        self._owner = np.zeros(num_pixels, dtype=np.uint8) if keep_second else None
        self._second = np.zeros(num_pixels, dtype=np.float32) if keep_second else None

    def add(self, values: Float32[np.ndarray, " pixels"]) -> None:
        """One more map, 0 to 1."""
        self.num_maps += 1
        if self._second is not None and self._owner is not None:
            np.maximum(self._second, np.minimum(self.first, values), out=self._second)
            # Of equal values the first map's; of a pixel that is 0 everywhere too.
            self._owner[(values > self.first) | (self.num_maps == 1)] = self.num_maps
        np.maximum(self.first, values, out=self.first)

    def background(self, power: float) -> Float32[np.ndarray, " pixels"]:
        """(1 - the highest)^power (eq. 9)."""
        return (1 - np.clip(self.first, 0, 1)) ** power

    def winner(self, power: float) -> UInt8[np.ndarray, " pixels"]:
        """0 for the background, k for the k-th map; of equal scores the background, then the first."""
        assert self._owner is not None
        return np.where(self.background(power) >= self.first, 0, self._owner)

    def lead(self) -> Float32[np.ndarray, " pixels"]:
        """The highest value minus the second, among the maps alone."""
        assert self._second is not None
        return self.first - self._second

    def margin(self, power: float) -> Float32[np.ndarray, " pixels"]:
        """The best score minus the second, among background and maps."""
        assert self._second is not None
        background = self.background(power)
        if self.num_maps == 0:
            return background
        low, high = np.minimum(background, self.first), np.maximum(background, self.first)
        return high - (low if self.num_maps == 1 else np.maximum(low, self._second))
