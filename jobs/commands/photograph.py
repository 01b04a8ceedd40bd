"""The image of `fmwsss try` and what it shows, checked before torch is imported: a mistake is told in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fmwsss.core.errors import InputError
from fmwsss.core.images import decode_rgb
from fmwsss.jobs.config.run import RunConfig


@dataclass(frozen=True, eq=False)
class Photograph:
    """One image with its labels.

    Attributes:
        image_id: its name without extension.
        data: the encoded file.
        pixels: RGB, upright.
        class_indices: of the classes that it shows, ascending.
    """

    image_id: str
    data: bytes
    pixels: UInt8[np.ndarray, "height width 3"]
    class_indices: tuple[int, ...]


def read_photograph(config: RunConfig, path: str, labels: list[str], output: str) -> Photograph:
    """Reads an image, and looks whether its labels are classes and whether what comes of it can be written.

    Args:
        config: the run file.
        path: of the image.
        labels: the classes that it shows.
        output: path of the PNG that will be written.

    Returns:
        The image.

    Raises:
        InputError: no such image, an unknown class, or no folder for the output.
    """
    vocabulary = config.resolve_vocabulary()
    indices = tuple(sorted({vocabulary.index(label) for label in labels}))
    if not indices:
        raise InputError("--labels names no class")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    pixels = decode_rgb(data, config.limits.max_pixels)
    if not Path(output).parent.is_dir():
        raise InputError(f"{output} cannot be written: no folder {Path(output).parent}")
    return Photograph(Path(path).stem, data, pixels, indices)
