"""mIoU of every way from class maps to labels, on the images of a run that have masks: the paper's tables 1 and 4.

    python -m benchmarks.methods RUN_FILE [KEY=VALUE]... [--seeds coarse] [--count 16] [--json FILE]

The run must be complete up to `seeds/<seeds>`: class maps, settings and SAM are its own. SAM's points are decoded once
an image; thresholds, suppression and everything after them are done again for each row that switches one of the three
changes off. Nothing is chosen on the truth but the two powers that say so.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.table import show, write_json
from fmwsss.cluster.models.loaders import load_sam
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.schemas import maps_from_bytes
from fmwsss.core.seeds.baselines import crf_seed, threshold_seed, voting_seed
from fmwsss.core.seeds.ceilings import POWERS
from fmwsss.core.seeds.sams import label_map_from_cam, seed_image
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.postprocess import WHOLE, finish
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import DecodedCrop, decode_crops, detect_decoded
from fmwsss.core.superpixels.sam_mask_decoder import DecodedMasks
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.seeds.methods import MAPS_COLUMN

CHANGES = {
    "sams": {},
    "sams without more whole": {"whole_bonus": 0.0},
    "sams without whole first": {"whole_priority": 0.0},
    "sams without occupation filter": {"occupation_threshold": None},
    "sams without any of the three": {"whole_bonus": 0.0, "whole_priority": 0.0, "occupation_threshold": None},
}


def superpixels_of(sam: Any, image: np.ndarray, settings: ProposalSettings) -> dict[str, Superpixels]:
    """By row of CHANGES; image encoder and mask decoder run once."""
    every = replace(settings, predicted_iou_threshold=0.0)
    crops = [crop._replace(masks=list(crop.masks)) for crop in decode_crops(sam, image, every)]

    def passing(crop: DecodedCrop, chosen: ProposalSettings) -> DecodedCrop:
        batches = []
        for masks in crop.masks:
            passed = masks.predicted_iou + chosen.whole_bonus * (masks.level == WHOLE) > chosen.predicted_iou_threshold
            if passed.any():
                batches.append(DecodedMasks(*(values[passed] for values in masks)))
        return crop._replace(masks=batches)

    found = {}
    for name, changes in CHANGES.items():
        chosen = replace(settings, **changes)
        own = [passing(crop, chosen) for crop in crops]
        found[name] = finish(detect_decoded(sam, image.shape[:2], own, chosen), chosen)
    return found


def measure(config: RunConfig, seeds: str, count: int) -> dict[str, Any]:
    run = Run(Folder(config.run))
    section = getattr(config.seeds, seeds)
    vocabulary = config.resolve_vocabulary()
    settings, sam = ProposalSettings(**config.propose.model_dump()), load_sam(config.sam.spec())
    num_classes = 1 + len(vocabulary.classes)
    counts: dict[str, np.ndarray] = {}
    num_superpixels = dict.fromkeys(CHANGES, 0)
    num_images = 0

    def judge(name: str, labels: np.ndarray, truth: np.ndarray) -> None:
        matrix = confusion_matrix(labels, truth, num_classes)
        counts[name] = counts.get(name, 0) + matrix

    for row in rows_of(run, seeds, count):
        num_images += 1
        image, truth = decode_rgb(row["image"], max_pixels=UNLIMITED), decode_label_png(row["truth"])
        indices = vocabulary.indices(row["classes"])
        shape = (len(indices), row["grid_height"], row["grid_width"])
        plain, refined = (maps_from_bytes(row[column], *shape) for column in ("cam", "refined_cam"))
        maps = maps_from_bytes(row[MAPS_COLUMN[section.maps]], *shape)
        for name, own in (("cam", plain), ("cam+caa", refined)):
            height, width = truth.shape
            for power in POWERS:
                judge(f"{name} {power}", label_map_from_cam(own, indices, height, width, power), truth)
        found = superpixels_of(sam, image, settings)
        arguments = (found["sams"], maps, indices, section.alpha)
        judge("threshold", threshold_seed(*arguments).labels, truth)
        judge("crf", crf_seed(image, *arguments).labels, truth)
        judge("voting", voting_seed(*arguments).labels, truth)
        for name, superpixels in found.items():
            num_superpixels[name] += len(superpixels)
            judge(name, seed_image(superpixels, maps, indices, section.alpha).labels, truth)
    return {"images": num_images, "rows": table(counts, num_superpixels, num_images, section)}


def rows_of(run: Run, seeds: str, count: int) -> Iterator[dict[str, Any]]:
    """Image, truth and maps of the first images that have a truth."""
    for part in run.parts(f"seeds/{seeds}"):
        images = run.read_part("images", part, columns=["image_id", "image", "truth"]).to_pylist()
        by_id = {row["image_id"]: row for row in images if row["truth"] is not None}
        columns = ["image_id", "classes", "grid_height", "grid_width", "cam", "refined_cam"]
        for row in run.read_part(f"seeds/{seeds}", part, columns=columns).to_pylist():
            if count > 0 and row["image_id"] in by_id:
                count -= 1
                yield row | by_id[row["image_id"]]


def table(counts: dict[str, Any], num_superpixels: dict[str, int], num_images: int, section: Any) -> list[dict]:
    rows = []
    for name in ("cam", "cam+caa"):
        mious = {power: mean_iou(counts[f"{name} {power}"]) for power in POWERS}
        best = max(POWERS, key=lambda power: mious[power])
        rows.append({"labels": f"{name}, best power on the truth", "power": best, "miou": 100 * mious[best]})
    rows += [
        {"labels": f"{name} ({section.maps})", "power": section.alpha, "miou": 100 * mean_iou(counts[name])}
        for name in ("threshold", "crf", "voting", *CHANGES)
    ]
    for row, name in zip(rows[-len(CHANGES) :], CHANGES, strict=True):
        row["superpixels"] = num_superpixels[name] / num_images
    return [{"superpixels": None, **row} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", metavar="RUN_FILE")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    parser.add_argument("--seeds", choices=["coarse", "fine"], default="coarse")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    result = measure(load_config(arguments.run_file, arguments.overrides), arguments.seeds, arguments.count)
    show(result["rows"], f"mIoU on {result['images']} images, maps of {arguments.seeds} prompts")
    write_json(arguments.json, result)
