"""Reader of the toy world: scenes that are drawn by program."""

from __future__ import annotations

from fmwsss.jobs.images.readers.base import Source, _checked

TOY_SCHEME = "toy:"


def draw_toy(num_images: int, first_seed: int) -> list[Source]:
    """Scenes of the toy world by their seeds; they are drawn where they are read."""
    urls = [(seed, f"{TOY_SCHEME}{seed}") for seed in range(first_seed, first_seed + num_images)]
    return _checked([Source(f"toy-{seed:06d}", url, None, url) for seed, url in urls], "the toy world")
