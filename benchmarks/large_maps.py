"""Class maps of photographs of 12 megapixels: seconds an image and the peak of memory of a replica's process.

    python -m benchmarks.large_maps [--count 8] [--max-side 640] [--json FILE]

A ViT-B/16 with random weights, hand-made prompts of VOC's classes, two classes an image, affinity of eight blocks; the
photographs are noise. Attention of the last blocks is images x heads x patches x patches: at the size of the image it
would be 106 GB for one of them.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import numpy as np
import open_clip
import torch

from benchmarks.table import show, write_json
from fmwsss.cluster.execution.rows import start_rows
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.clip_maps import ClipReplica
from fmwsss.core.schemas import DECODED_PAYLOAD
from fmwsss.core.vocabularies import VOC12

HEIGHT_PX, WIDTH_PX = 3024, 4032


def random_clip() -> Any:
    """A ViT-B/16 that has learned nothing."""
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-16", pretrained=None)


def measure(count: int, max_side_px: int) -> dict[str, Any]:
    """One block of photographs through a replica, in this process."""
    spec = ModelSpec(factory="benchmarks.large_maps:random_clip")
    replica = ClipReplica(
        spec, VOC12, ("a photo of a {}.",), 0.4, 1, (1.0,), 8, "seeds/coarse", num_threads=1, max_side_px=max_side_px
    )
    generator = np.random.default_rng(0)
    size = {"height_px": HEIGHT_PX, "width_px": WIDTH_PX, "classes": ["cat", "sofa"]}
    rows = [
        {"image_id": f"{number}", **size, "pixels": generator.bytes(3 * HEIGHT_PX * WIDTH_PX)}
        for number in range(count)
    ]
    block = start_rows("part-00000.parquet", rows, DECODED_PAYLOAD)
    del rows
    began_s = time.perf_counter()
    found = replica(block).to_pylist()
    seconds = time.perf_counter() - began_s
    if failures := [row["failure"] for row in found if row["failure"]]:
        raise SystemExit(failures[0]["message"])
    return {
        "images": count,
        "max_side": max_side_px,
        "grid": f"{found[0]['grid_height']} x {found[0]['grid_width']}",
        "s_per_image": seconds / count,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--max-side", type=int, default=640)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    result = measure(arguments.count, arguments.max_side)
    show([result], "maps of 12 megapixels")
    write_json(arguments.json, result)
