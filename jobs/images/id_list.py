"""Lists of images: text files with an id on each line, as `fmwsss view` saves them."""

from __future__ import annotations

from fmwsss.cluster.storage.folder import read_url
from fmwsss.core.errors import InputError

MOST_BYTES = 1 << 30


def ids_of_list(place: str) -> set[str]:
    """The ids of a list of images.

    Args:
        place: path or URL of a text file; empty lines count for nothing.

    Raises:
        InputError: there is none in it.
        StorageError: it can't be read.
    """
    text = read_url(place, max_bytes=MOST_BYTES).decode("utf-8-sig", "replace")
    ids = {line.strip() for line in text.splitlines() if line.strip()}
    if not ids:
        raise InputError(f"{place} lists no image: give a text file with an id on each line")
    return ids
