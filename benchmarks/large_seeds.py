"""Seeds of large images with many classes: seconds a class, and the peak of memory of the process that makes them.

    python -m benchmarks.large_seeds [--superpixels 100] [--json FILE]

Both must grow as classes times pixels do, and not faster: of the maps there is one at a time at the size of the image.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np

from benchmarks.table import show, write_json
from fmwsss.core.seeds.sams import seed_image
from fmwsss.core.superpixels.masks import Superpixels

CASES = ((375, 500, 1), (375, 500, 20), (1500, 2000, 1), (1500, 2000, 20), (3000, 4000, 20), (3000, 4000, 80))
PATCH_PX = 16


def make_superpixels(count: int, height: int, width: int) -> Superpixels:
    """Wavy outlines, areas from a thousandth to a third of the image."""
    generator = np.random.default_rng(count + height)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    rle: list[bytes] = []
    one = np.ones(1, dtype=np.float32)
    for _ in range(count):
        radius = np.sqrt(10 ** generator.uniform(-3, -0.5) / np.pi) * np.sqrt(height * width)
        dy, dx = rows - np.float32(generator.uniform(0, height)), columns - np.float32(generator.uniform(0, width))
        wave = 1 + np.float32(0.3) * np.sin(generator.integers(2, 9) * np.arctan2(dy, dx))
        mask = dy**2 + dx**2 < (np.float32(radius) * wave) ** 2
        rle += Superpixels.from_masks(mask[None], np.zeros(1, np.int8), one, one).rle
    scores = np.ones(count, dtype=np.float32)
    return Superpixels(height, width, generator.integers(0, 3, count).astype(np.int8), scores, scores, tuple(rle))


def measure(superpixels: Superpixels, num_classes: int) -> dict[str, float]:
    """In a process of its own, whose peak is that of this seed."""
    grid = (num_classes, superpixels.height_px // PATCH_PX, superpixels.width_px // PATCH_PX)
    cams = np.random.default_rng(0).random(grid, dtype=np.float32)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.process_time()
    seed_image(superpixels, cams, list(range(1, 1 + num_classes)), alpha=0.6, uncovered="map")
    seconds = time.process_time() - began_s
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "height": superpixels.height_px,
        "width": superpixels.width_px,
        "classes": num_classes,
        "seconds": seconds,
        "ms_per_class": 1000 * seconds / num_classes,
        "peak_mib": peak_kib / 1024,
        "before_mib": before_kib / 1024,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--superpixels", type=int, default=100)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    found = []
    for height_px, width_px, count in CASES:
        drawn = make_superpixels(arguments.superpixels, height_px, width_px)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measure, (drawn, count)))
    show(found, f"seeds with {arguments.superpixels} superpixels")
    write_json(arguments.json, {"superpixels": arguments.superpixels, "rows": found})
