"""What half precision costs: superpixels and seeds of SAM in another precision against those in float32, and the time.

    python -m benchmarks.precision RUN_FILE [KEY=VALUE]... [--precision bfloat16] [--seeds coarse] [--count 16]

The run must be complete up to `seeds/<seeds>`: photographs, class maps and settings are its own, so that nothing but
the precision of SAM differs. The goal is 99 % of the pixels with the same label.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.methods import rows_of
from benchmarks.proposals import now_s
from benchmarks.table import show, write_json
from fmwsss.cluster.models.loaders import load_sam
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.schemas import maps_from_bytes
from fmwsss.core.seeds.sams import seed_image
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import propose
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.seeds.methods import MAPS_COLUMN


def measure(config: RunConfig, precision: str, seeds: str, count: int) -> dict[str, Any]:
    section, vocabulary = getattr(config.seeds, seeds), config.resolve_vocabulary()
    sam = load_sam(config.sam.spec())
    settings = ProposalSettings(**config.propose.model_dump())
    sides = {name: replace(settings, precision=name) for name in ("float32", precision)}
    matrices: dict[str, Any] = dict.fromkeys(sides, 0)
    seconds, num_superpixels = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0)
    agreements = []
    for row in rows_of(Run(Folder(config.run)), seeds, count):
        image, truth = decode_rgb(row["image"], max_pixels=UNLIMITED), decode_label_png(row["truth"])
        indices = vocabulary.indices(row["classes"])
        maps = maps_from_bytes(row[MAPS_COLUMN[section.maps]], len(indices), row["grid_height"], row["grid_width"])
        labels = {}
        for name, own in sides.items():
            began_s = now_s()
            superpixels = propose(sam, image, own)
            seconds[name] += now_s() - began_s
            num_superpixels[name] += len(superpixels)
            labels[name] = seed_image(superpixels, maps, indices, section.alpha).labels
            matrices[name] = matrices[name] + confusion_matrix(labels[name], truth, 1 + len(vocabulary.classes))
        agreements.append(float(np.mean(labels["float32"] == labels[precision])))
    num_images = len(agreements)
    rows = [
        {
            "precision": name,
            "seconds_per_image": seconds[name] / num_images,
            "superpixels_per_image": num_superpixels[name] / num_images,
            "miou": 100 * mean_iou(matrices[name]),
        }
        for name in sides
    ]
    return {
        "device": str(sam.device),
        "images": num_images,
        "label_agreement": float(np.mean(agreements)),
        "worst_image": min(agreements),
        "rows": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--precision", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seeds", choices=["coarse", "fine"], default="coarse")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.run_file, arguments.overrides)
    result = measure(config, arguments.precision, arguments.seeds, arguments.count)
    show(result["rows"], f"{result['images']} images")
    print(f"labels that agree: {result['label_agreement']:.2%}, on the worst image {result['worst_image']:.2%}")
    write_json(arguments.json, result)
