"""Seeds with and without the model of foreground superpixels (docs/method.md, M5.5), on the images of one run.

    python -m benchmarks.foreground RUN_FILE [KEY=VALUE]... [--seeds coarse] [--json FILE]

The run must be complete up to `seeds/<seeds>`: maps, superpixels and settings are its own. Only images that have ground
truth are judged; the model is fitted to all of them, and ground truth has no part in it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.methods import rows_of
from benchmarks.table import show, write_json
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.schemas import maps_from_bytes, superpixels_from_row
from fmwsss.core.seeds.foreground import fit_folds, fold_of, foreground_margins, pooled_tokens
from fmwsss.core.seeds.sams import seed_image
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.seeds.methods import MAPS_COLUMN


@dataclass(frozen=True, eq=False)
class Example:
    """What is judged of one image."""

    image_id: str
    superpixels: Superpixels
    maps: np.ndarray
    indices: tuple[int, ...]
    truth: np.ndarray
    tokens: np.ndarray
    margins: np.ndarray


def examples_of(config: RunConfig, seeds: str) -> list[Example]:
    run, section = Run(Folder(config.run)), getattr(config.seeds, seeds)
    vocabulary, clip = config.resolve_vocabulary(), load_clip(config.clip.spec())
    superpixels = {}
    for part in run.parts("superpixels"):
        superpixels |= {row["image_id"]: row for row in run.read_part("superpixels", part).to_pylist()}
    found = []
    for row in rows_of(run, seeds, 1 << 30):
        own, indices = superpixels_from_row(superpixels[row["image_id"]]), vocabulary.indices(row["classes"])
        maps = maps_from_bytes(row[MAPS_COLUMN[section.maps]], len(indices), row["grid_height"], row["grid_width"])
        image, text = decode_rgb(row["image"], max_pixels=UNLIMITED), torch.zeros(1, clip.embed_dim, device=clip.device)
        looks = map_classes(clip, [image], [[1]], text, text, None, 0, (1.0,), 0, looks=section.foreground or "both")
        assert looks[0].looks is not None
        margins = foreground_margins(seed_image(own, maps, indices, section.alpha).scores)
        truth = decode_label_png(row["truth"])
        found.append(Example(row["image_id"], own, maps, indices, truth, pooled_tokens(own, looks[0].looks), margins))
    return found


def measure(config: RunConfig, seeds: str) -> list[dict[str, Any]]:
    examples = examples_of(config, seeds)
    section, num_classes = getattr(config.seeds, seeds), 1 + len(config.resolve_vocabulary().classes)
    folds = fold_of([example.image_id for example in examples])
    counts = [len(example.superpixels) for example in examples]
    tokens = np.concatenate([example.tokens for example in examples])
    models = fit_folds(tokens, np.concatenate([example.margins for example in examples]), np.repeat(folds, counts))
    rows = []
    for learned in (False, True):
        for uncovered in ("background", "map"):
            matrix: Any = 0
            for own in examples:
                decision = models.decide(own.image_id, own.tokens, own.margins) if learned else None
                seed = seed_image(
                    own.superpixels, own.maps, own.indices, section.alpha, uncovered=uncovered, foreground=decision
                )
                matrix = matrix + confusion_matrix(seed.labels, own.truth, num_classes)
            foreground = "learned on the dataset" if learned else "by the maps of the image"
            rows.append({"foreground": foreground, "uncovered pixels": uncovered, "miou": 100 * mean_iou(matrix)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", metavar="RUN_FILE")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    parser.add_argument("--seeds", choices=["coarse", "fine"], default="fine")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    result = measure(load_config(arguments.run_file, arguments.overrides), arguments.seeds)
    show(result, f"mIoU of {arguments.seeds} seeds")
    write_json(arguments.json, {"rows": result})
