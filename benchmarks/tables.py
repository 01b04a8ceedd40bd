"""Tables 1, 2, 4 and 5 of the paper (arXiv 2312.03585) on any labelled data set with ground truth.

    python -m benchmarks.tables RUN_FILE [KEY=VALUE]... [--table 1]... [--count N] [--json FILE]

Each row is a run of its own below the run file's run, RUN/tables/..., whose prompts and seeds alone are its own: all of
them share one pass of SAM (`proposals`, RUN/tables/superpixels where the run file names none). What is complete is not
done again. Of table 4 SAM's points are decoded once more, for all rows together: they switch its three changes off.
Ground truth judges and decides nothing, but for the two powers of table 4 that say so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks import methods
from benchmarks.table import show, write_json
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.schemas import maps_from_bytes, superpixels_from_row
from fmwsss.core.seeds.baselines import crf_seed
from fmwsss.jobs import steps
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.seeds.methods import MAPS_COLUMN

COARSE = ["images", "superpixels", "features", "prompts/classification", "seeds/coarse"]
FINE = [*COARSE, "prompts/segmentation", "seeds/fine"]


def _prompts(context: str, name_position: str, backgrounds: str) -> list[str]:
    chosen = {"context": context, "name_position": name_position, "backgrounds": backgrounds}
    return [f"learn.segmentation.{key}={value}" for key, value in chosen.items()]


# What differs from the run file, and the steps that its row needs. The paper's names of table 2: a name is prepended
# where it stands in front of the context; "bg" are names of backgrounds in place of prompts without a name.
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "main": ([], FINE),
    "clip-es": (["learn=none"], ["images", "superpixels", "seeds/coarse"]),
    "unified": (_prompts("unified", "end", "named"), FINE),
    "append-bg": (_prompts("class-specific", "end", "named"), FINE),
    "prepend-bg": (_prompts("class-specific", "front", "named"), FINE),
    "prepend": (_prompts("class-specific", "front", "learned"), FINE),
    "bce": (["learn.classification.classification_loss=bce"], COARSE),
    "ce": (["learn.segmentation.cam_loss=ce"], FINE),
}
# Rows: words, variant, seeds, how they are read; the paper's figure on VOC trainaug (docs/method.md, M9).
Stored = tuple[str, str, str, str, float | None]
TABLES: dict[int, list[Stored]] = {
    1: [
        ("CLIP-ES, hand-made prompts + CRF", "clip-es", "coarse", "crf", 68.7),
        ("CLIP-ES, hand-made prompts + SAMS", "clip-es", "coarse", "stored", None),
        ("classification prompts + CRF", "main", "coarse", "crf", 68.2),
        ("classification prompts + SAMS", "main", "coarse", "stored", 71.5),
        ("both sets of prompts + CRF", "main", "fine", "crf", 71.6),
        ("both sets of prompts + SAMS", "main", "fine", "stored", 74.2),
    ],
    2: [
        ("unified", "unified", "fine", "stored", 72.6),
        ("class-specific, name last, named backgrounds", "append-bg", "fine", "stored", 73.3),
        ("class-specific, name first, named backgrounds", "prepend-bg", "fine", "stored", 73.6),
        ("class-specific, name first, backgrounds without names", "prepend", "fine", "stored", 74.2),
    ],
    5: [
        ("BCE", "bce", "coarse", "stored", 65.9),
        ("MCL", "main", "coarse", "stored", 71.5),
        ("MCL + CE", "ce", "fine", "stored", 52.1),
        ("MCL + CAL", "main", "fine", "stored", 74.2),
    ],
}


def make_tables(run_file: str, overrides: list[str], tables: list[int], count: int | None) -> dict[str, Any]:
    """Rows by table; runs what is missing first."""
    base = load_config(run_file, overrides)
    own = Folder(base.run).child("tables")
    shared = base.proposals or own.child("superpixels").url
    limit = count if count is not None else 2**31

    def config_of(name: str) -> RunConfig:
        changes = [f"run={own.child(name).url}", f"proposals={shared}", *VARIANTS[name][0]]
        return load_config(run_file, [*overrides, *changes])

    found: dict[str, Any] = {}
    for table in tables:
        rows = []
        for words, variant, seeds, how, published in TABLES.get(table, []):
            config = config_of(variant)
            steps.run(config, VARIANTS[variant][1])
            miou = _cached(own, f"{table}-{len(rows)}-{limit}", lambda c=config, s=seeds, h=how: judge(c, s, h, limit))
            rows.append({"labels": words, "miou": miou, "paper, VOC trainaug": published})
        if table == 4:
            config = config_of("main")
            steps.run(config, FINE)
            rows = _cached(own, f"4-{limit}", lambda c=config: methods.measure(c, "fine", limit)["rows"])
        found[str(table)] = rows
    return found


def _cached(own: Folder, name: str, make: Callable[[], Any]) -> Any:
    """A result that is kept beside the runs, and made again only when its run was (then its folder is deleted)."""
    file = f"judged/{name}.json"
    if own.exists(file):
        return json.loads(own.read(file))
    value = make()
    own.write(file, json.dumps(value).encode())
    return value


def judge(config: RunConfig, seeds: str, how: str, count: int) -> float:
    """mIoU in % of one row: of the stored seeds, or of a dense CRF on the stored maps."""
    section, vocabulary = getattr(config.seeds, seeds), config.resolve_vocabulary()
    counts = np.zeros((1 + len(vocabulary.classes), 2 + len(vocabulary.classes)), np.int64)
    for row in rows_of(Run(Folder(config.run)), seeds, count):
        labels = decode_label_png(row["seed"])
        if how == "crf":
            indices = vocabulary.indices(row["classes"])
            shape = (len(indices), row["grid_height"], row["grid_width"])
            maps = maps_from_bytes(row[MAPS_COLUMN[section.maps]], *shape)
            superpixels = superpixels_from_row(row["superpixels"])
            image = decode_rgb(row["image"], max_pixels=UNLIMITED)
            labels = crf_seed(image, superpixels, maps, indices, section.alpha).labels
        counts = counts + confusion_matrix(labels, decode_label_png(row["truth"]), 1 + len(vocabulary.classes))
    return 100 * mean_iou(counts)


def rows_of(run: Run, seeds: str, count: int) -> Iterator[dict[str, Any]]:
    """Image, truth, superpixels and seed of the first images that have a truth."""
    for part in run.parts(f"seeds/{seeds}"):
        images = run.read_part("images", part, columns=["image_id", "image", "truth"]).to_pylist()
        by_id = {row["image_id"]: row for row in images if row["truth"] is not None}
        superpixels = {row["image_id"]: row for row in run.read_part("superpixels", part).to_pylist()}
        for row in run.read_part(f"seeds/{seeds}", part).to_pylist():
            if count > 0 and row["image_id"] in by_id:
                count -= 1
                yield row | by_id[row["image_id"]] | {"superpixels": superpixels[row["image_id"]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", metavar="RUN_FILE")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    parser.add_argument("--table", type=int, choices=[1, 2, 4, 5], action="append")
    parser.add_argument("--count", type=int, help="judge so many images only")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    made = make_tables(arguments.run_file, arguments.overrides, arguments.table or [1, 2, 4, 5], arguments.count)
    for number, rows in made.items():
        show(rows, f"table {number}, mIoU in %")
    write_json(arguments.json, made)
