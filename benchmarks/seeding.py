"""From masks and class maps to a seed: ours, the dense way of the authors' program (method M5.2), and a dense CRF.

    python -m benchmarks.seeding [--json FILE] [--repeats 3]

Masks are blobs of all levels and sizes, some inside others; maps are smooth. All sides start from the same run lengths
and the same maps on CLIP's grid, and end with a label map. The dense way decodes every mask and takes means over whole
images, mask by mask and class by class; painting is a loop over masks. Seconds are the best of several runs, of the
processor: other programs on the machine do not change them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

from benchmarks.table import show, write_json
from fmwsss.core.resize import upsample
from fmwsss.core.seeds.dense_crf import dense_crf
from fmwsss.core.seeds.sams import cam_probabilities, seed_image
from fmwsss.core.superpixels.masks import Superpixels

ALPHA = 0.6
SIZES = ((375, 500), (1024, 1024))


def make(num_superpixels: int, num_classes: int, height: int, width: int) -> tuple[Superpixels, np.ndarray, np.ndarray]:
    """Superpixels (wavy outlines, areas from a thousandth to a third of the image), maps, and a photograph of sorts."""
    generator = np.random.default_rng(num_superpixels + num_classes + height)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    masks = np.zeros((num_superpixels, height, width), dtype=bool)
    for mask in masks:
        radius = np.sqrt(10 ** generator.uniform(-3, -0.5) / np.pi) * np.sqrt(height * width)
        dy, dx = rows - generator.uniform(0, height), columns - generator.uniform(0, width)
        wave = 1 + 0.3 * np.sin(generator.integers(2, 9) * np.arctan2(dy, dx))
        mask[:] = dy**2 + dx**2 < (radius * wave) ** 2
    masks = masks[masks.any(axis=(1, 2))]
    level = generator.integers(0, 3, len(masks)).astype(np.int8)
    scores = np.ones(len(masks), dtype=np.float32)
    grid = torch.from_numpy(generator.random((1, num_classes, 6, 8), dtype=np.float32))
    cams = torch.nn.functional.interpolate(grid, (height // 16, width // 16), mode="bicubic")[0].clamp(0, 1).numpy()
    coarse = torch.from_numpy(generator.integers(0, 256, (1, 3, 12, 16)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
    photograph = np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    return Superpixels.from_masks(masks, level, scores, scores), cams, photograph


def dense_seed(superpixels: Superpixels, cams: np.ndarray, classes: list[int]) -> np.ndarray:
    """M5.2 as it reads."""
    size = [superpixels.height_px, superpixels.width_px]
    masks = [coco.decode({"size": size, "counts": rle}).astype(bool) for rle in superpixels.rle]
    maps = torch.nn.functional.interpolate(torch.from_numpy(cams)[None], size, mode="bilinear", align_corners=False)
    maps = maps[0].numpy().clip(0)
    scores = np.zeros((len(masks), 1 + len(classes)))
    for column, values in enumerate(maps):
        low, high = values.min(), values.max()
        values = (values - low) / (high - low)
        means = np.array([(values * mask).sum(dtype=np.float64) / mask.sum() for mask in masks])
        scores[:, 1 + column] = (means - means.min()) / (means.max() - means.min() + 1e-7)
    scores[:, 0] = (1 - scores.max(axis=1)) ** ALPHA
    scores = scores.astype(np.float32)
    winner, best = scores.argmax(axis=1), scores.max(axis=1)
    labels = np.zeros(size, dtype=np.uint8)
    for index in sorted(range(len(masks)), key=lambda i: (superpixels.level[i], best[i], -i)):
        labels[masks[index]] = [0, *classes][winner[index]]
    return labels


def fresh(superpixels: Superpixels) -> Superpixels:
    """The same, with nothing kept from an earlier call."""
    return superpixels.select(range(len(superpixels)))


def seconds(function: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started_s = time.process_time()
        function()
        times.append(time.process_time() - started_s)
    return min(times)


def measure(num_superpixels: int, num_classes: int, height: int, width: int, repeats: int) -> dict[str, Any]:
    superpixels, cams, photograph = make(num_superpixels, num_classes, height, width)
    classes = list(range(1, 1 + num_classes))
    ours = seed_image(superpixels, cams, classes, ALPHA).labels
    equal = bool(np.array_equal(ours, dense_seed(superpixels, cams, classes)))
    probabilities = cam_probabilities(upsample(cams, height, width), ALPHA)
    ours_s = seconds(lambda: seed_image(fresh(superpixels), cams, classes, ALPHA), 3 * repeats)
    dense_s = seconds(lambda: dense_seed(superpixels, cams, classes), repeats)
    crf_s = seconds(lambda: dense_crf(photograph, probabilities), 1)
    return {
        "superpixels": num_superpixels,
        "classes": num_classes,
        "height": height,
        "width": width,
        "ours_s": ours_s,
        "dense_s": dense_s,
        "crf_s": crf_s,
        "vs_dense": dense_s / ours_s,
        "vs_crf": crf_s / ours_s,
        "equal": equal,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(s, c, *size, arguments.repeats) for size, s, c in itertools.product(SIZES, (100, 300), (2, 6))]
    show(rows, "seeding, seconds per image")
    write_json(arguments.json, {"rows": rows})
