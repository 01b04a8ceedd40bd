"""Reader of the toy world: scenes that are drawn by program."""

from __future__ import annotations

from fmwsss.jobs.images.places import TOY
from fmwsss.jobs.images.readers.base import Listing, Source, listing_of


def draw_toy(num_images: int, first_seed: int) -> Listing:
    """Scenes of the toy world by their seeds; they are drawn where they are read.

    Args:
        num_images: how many.
        first_seed: of the first scene; each next one has the next.

    Returns:
        The scenes; their ground truth stands for their labels.
    """
    urls = [(seed, f"{TOY}{seed}") for seed in range(first_seed, first_seed + num_images)]
    return listing_of([Source(f"toy-{seed:06d}", url, None, url) for seed, url in urls], "the toy world")
