"""Sources of class maps side by side: mIoU of the seeds they give, milliseconds an image, and what they could give.

    python -m benchmarks.maps RUN_FILE [KEY=VALUE]... [--count 80] [--sources "gradcam; patch"] [--json FILE]

The run must have `images` and `superpixels`, with masks as ground truth. All sources see the same images, prompts
(those of `seeds.fine`), superpixels and alpha in one process. `ceiling` is the mIoU of their maps, each cut where it
fits the truth best; `run file` is the source of `seeds.fine`. Nothing is chosen on the truth. An image is timed alone,
without its decoding; `forward` is CLIP's image tower up to its last block and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.table import show, write_json
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Run
from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.class_maps.sources import build
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.prompts.learner import PromptLearner, handmade_embeddings
from fmwsss.core.schemas import superpixels_from_row
from fmwsss.core.seeds.ceilings import cut_best, named_by_truth
from fmwsss.core.seeds.sams import seed_image
from fmwsss.jobs.config.class_maps import given_sources
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.seeds.maps import PROMPTS_OF

PATCH: dict[str, Any] = {"kind": "patch"}
SC_CLIP = {"mend_outliers": True, "similarity_depth": 0.75, "smoothing_depth": 0.33, "summed_depths": (0.33, 0.83)}
SOURCES: dict[str, dict[str, Any]] = {
    "gradcam": {"kind": "gradcam"},
    "patch": PATCH,
    "patch, query-key": {**PATCH, "attention": "query-key"},
    "patch, identity": {**PATCH, "attention": "identity"},
    "patch, mean of three": {**PATCH, "attention": "mean-of-three"},
    "patch, ClearCLIP": {**PATCH, "attention": "query-query", "residual": False, "mlp": False},
    "patch, NACLIP": {**PATCH, "residual": False, "mlp": False, "neighbourhood_patches": 5.0},
    "patch, SCLIP": {**PATCH, "attention": "query-query+key-key"},
    "patch, SC-CLIP": {**PATCH, "residual": False, "mlp": False, **SC_CLIP},
    "patch, softmax": {**PATCH, "softmax_scale": 40.0},
    "patch, softmax over all": {**PATCH, "softmax_scale": 40.0, "with_absent": True},
    "patch + gradcam": {
        "kind": "mixture",
        "parts": [{"source": PATCH, "weight": 1.0}, {"source": {"kind": "gradcam"}, "weight": 1.0}],
    },
}


def rows_of(run: Run, count: int) -> Iterator[dict[str, Any]]:
    """Images with masks, classes and superpixels."""
    for part in run.parts("images"):
        table = run.read_part("superpixels", part)
        superpixels = {row["image_id"]: row for row in table.to_pylist()}
        columns = ["image_id", "image", "classes", "truth"]
        for row in run.read_part("images", part, columns=columns).to_pylist():
            if count > 0 and row["truth"] is not None and row["classes"] and row["image_id"] in superpixels:
                count -= 1
                yield {**row, "superpixels": superpixels_from_row(superpixels[row["image_id"]])}


def measure(config: RunConfig, count: int, names: list[str]) -> dict[str, Any]:
    run, section, vocabulary = Run(Folder(config.run)), config.seeds.fine, config.resolve_vocabulary()
    clip, num_classes = load_clip(config.clip.spec()), 1 + len(vocabulary.classes)
    prompts = run.folder.child(PROMPTS_OF["fine"])
    with torch.no_grad():
        if section.prompts == "learned" and prompts.exists(PROMPTS_FILE):
            text = PromptLearner.from_bytes(clip, vocabulary, prompts.read(PROMPTS_FILE))()
        else:
            text = handmade_embeddings(clip, vocabulary, section.templates)
    foreground, background = text
    settings = {**SOURCES, "run file": section.source.model_dump()}
    sources = {name: build(settings[name]) for name in names}
    affinity = (section.box_threshold, section.num_sinkhorn, section.scales, 0)
    seeds: dict[str, Any] = dict.fromkeys(["masks", *names], 0)
    ceilings: dict[str, Any] = dict.fromkeys(names, 0)
    times: dict[str, list[float]] = {name: [] for name in ["forward", *names]}
    num_images = 0
    for number, row in enumerate(rows_of(run, count)):
        num_images += 1
        image, truth = decode_rgb(row["image"], max_pixels=UNLIMITED), decode_label_png(row["truth"])
        indices = sorted(vocabulary.indices(row["classes"]))
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        began_s = time.perf_counter()
        for scale in section.scales:
            clip.encode_image(clip.preprocess(pixels, scale)).last_block_input.cpu()
        times["forward"].append(time.perf_counter() - began_s)
        seeds["masks"] += confusion_matrix(named_by_truth(row["superpixels"], truth), truth, num_classes)
        for name, source in sources.items():
            began_s = time.perf_counter()
            (maps,) = map_classes(
                clip,
                [image],
                [indices],
                foreground,
                background,
                *affinity,
                source=source,
                flip=section.flip,
                max_side_px=section.max_side_px,
            )
            times[name].append(time.perf_counter() - began_s)
            seed = seed_image(row["superpixels"], maps.cam, indices, section.alpha)
            seeds[name] += confusion_matrix(seed.labels, truth, num_classes)
            ceilings[name] += confusion_matrix(cut_best(maps.cam, indices, truth), truth, num_classes)
        if number == 0:  # the first image warms up
            times = {name: [] for name in times}
    if not num_images:
        raise SystemExit(f"{run.folder.url} has no image with ground truth, classes and superpixels")
    milliseconds = {name: 1000 * statistics.median(own) if own else None for name, own in times.items()}
    rows = [
        {
            "source": name,
            "miou": 100 * mean_iou(seeds[name]),
            "ms_per_image": milliseconds[name],
            "ceiling": 100 * mean_iou(ceilings[name]),
        }
        for name in names
    ]
    return {
        "images": num_images,
        "forward_ms": milliseconds["forward"],
        "ceiling_of_masks": 100 * mean_iou(np.asarray(seeds["masks"])),
        "rows": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", metavar="RUN_FILE")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument(
        "--sources", help=f"of {'; '.join(SOURCES)}; run file: between semicolons; all but the last if left out"
    )
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    chosen = [name.strip() for name in arguments.sources.split(";")] if arguments.sources else list(SOURCES)
    if unknown := [name for name in chosen if name not in SOURCES and name != "run file"]:
        parser.error(f"no source {unknown[0]!r}; there are {'; '.join(SOURCES)}; run file (between semicolons)")
    read = load_config(arguments.run_file, arguments.overrides)
    if "run file" in chosen and given_sources(read.seeds.fine.source):
        parser.error("`run file` has given maps, which cost nothing here; leave it out")
    torch.set_num_threads(1)
    result = measure(read, arguments.count, chosen)
    title = f"mIoU on {result['images']} images; masks allow {result['ceiling_of_masks']:.1f}"
    show(result["rows"], f"{title}; CLIP's tower {result['forward_ms'] or 0:.0f} ms")
    write_json(arguments.json, result)
