"""A run with seeds, superpixels and figures that was written without models and without Ray, of any size."""

from __future__ import annotations

from typing import Any

import numpy as np

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.images import encode_grey_png, encode_label_png
from fmwsss.core.schemas import FAILURES, IMAGES, SEEDS, SUPERPIXELS, maps_to_bytes, superpixels_row
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.jobs.images.record import RECORD
from fmwsss.jobs.reports.image_figures import FIGURES, FIGURES_FILE
from fmwsss.jobs.stages import begin_stage, finish_stage
from tests.support.image_files import png

CLASSES = ("cat", "dog", "cow")
HEIGHT, WIDTH = 24, 32
STAGES = ("images", "superpixels", "seeds/coarse", "seeds/fine")
LOOKS = 16  # different pictures; images of the same number modulo it look alike


def superpixels_of(look: int) -> Superpixels:
    """Three: a square in a rectangle, and another rectangle beside."""
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[0, 6:12, 4:10] = True
    masks[1, 4 : 16 + look % 4, 2:14] = True
    masks[2, 4:20, 18:30] = True
    numbers = {"predicted_iou": np.ones(3, np.float32), "stability": np.ones(3, np.float32)}
    return Superpixels.from_masks(masks, level=np.array([0, 2, 2], np.int8), **numbers)


def label_map(look: int, shift: int = 0) -> np.ndarray:
    """The rectangle is a cat, the other one a dog where `look` is even."""
    superpixels = superpixels_of(look + shift)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[superpixels.mask(1)] = 1
    if look % 2 == 0:
        labels[superpixels.mask(2)] = 2
    return labels


def classes_of(number: int) -> list[str]:
    """Labels of image `number`: every fifth also has a cow, which no seed finds."""
    return ["cat", *(["dog"] if number % 2 == 0 else []), *(["cow"] if number % 5 == 0 else [])]


def confidence_of(number: int) -> float:
    """Between 0 and 1, not in the order of the numbers."""
    return (number * 37 % 1009) / 1009


def make_run(
    folder: Folder, num_images: int, shard_rows: int, name: str = "img-{:05d}", shift: int = 0, failing: int = 0
) -> Run:
    """Writes a run of `num_images`, of which the first `failing` have no fine seed, but a row of failures."""
    run = Run(folder)
    config = {"vocabulary": {"classes": list(CLASSES)}, "run": "x", "dataset": {"kind": "folder"}}
    run.write_manifest({"config": config, "stages": list(STAGES)})
    rng = np.random.default_rng(0)
    pictures = [png(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(LOOKS)]
    grey = encode_grey_png(np.full((HEIGHT, WIDTH), 0.5, np.float32))
    proposals = [superpixels_row("", superpixels_of(look)) for look in range(LOOKS)]
    seeds = [encode_label_png(label_map(look, shift)) for look in range(LOOKS)]
    truths = [encode_label_png(label_map(look)) for look in range(LOOKS)]
    cam = maps_to_bytes(np.full((1, 3, 4), 0.5, np.float32))
    ids = [name.format(number) for number in range(num_images)]
    shards = [range(begin, min(begin + shard_rows, num_images)) for begin in range(0, num_images, shard_rows)]
    parts = [part_name(index) for index in range(len(shards))]
    size = {"height_px": HEIGHT, "width_px": WIDTH}

    def row_of(stage: str, number: int) -> dict[str, Any] | None:
        look, own = number % LOOKS, {"image_id": ids[number], **size, "classes": classes_of(number)}
        if stage == "images":
            return {**dict.fromkeys(IMAGES.names), **own, "image": pictures[look], "truth": truths[look]}
        if stage == "superpixels":
            return {**proposals[look], "image_id": ids[number]}
        if stage == "seeds/fine" and number < failing:
            return None
        return {
            **dict.fromkeys(SEEDS.names), **own, "seed": seeds[look], "superpixel_class": [1, 1, 2 - 2 * (look % 2)],
            "confidence": grey, "mean_confidence": confidence_of(number), "coverage": 0.4,
            "missing": ["cow"] if number % 5 == 0 else [], "grid_height": 3, "grid_width": 4,
            "cam": cam * len(classes_of(number)),
        }  # fmt: skip

    for stage, schema in zip(STAGES, (IMAGES, SUPERPIXELS, SEEDS, SEEDS), strict=True):
        started = begin_stage(run, stage, {}, [])
        for part, numbers in zip(parts, shards, strict=True):
            rows = [row for number in numbers if (row := row_of(stage, number))]
            failed = [number for number in numbers if number < failing] if stage == "seeds/fine" else []
            told = [{**dict.fromkeys(FAILURES.names), "image_id": ids[number], "stage": stage,
                     "error_type": "ValueError", "message": "<b>too dark</b>"} for number in failed]  # fmt: skip
            run.write_part(stage, part, rows, schema, told)
        finish_stage(run, started, parts, num_images - (failing if stage == "seeds/fine" else 0), failing)
    record = [{**dict.fromkeys(RECORD.names), "shard": n // shard_rows, "image_id": ids[n]} for n in range(num_images)]
    folder.child("images").write_table("_dataset.parquet", record, RECORD)
    figures = [{"image_id": ids[n], "area": (n % 10) / 10, "disagreement": 0.0, "iou": 1 - (n % 7) / 10}
               for n in range(failing, num_images)]  # fmt: skip
    folder.child("reports").write_table(FIGURES_FILE, figures, FIGURES)
    return Run(folder)
