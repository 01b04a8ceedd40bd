"""Does the judge of `fmwsss tune` order configurations as ground truth does? Spearman's rank correlation.

    python -m benchmarks.judge RUN_FILE [KEY=VALUE]... [--count 80] [--json FILE]

The run must have `images`, with masks as ground truth, and `superpixels`. Ground truth is read for the
correlation alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.table import show, write_json
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import decode_label_png
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.jobs.commands.tune import CANDIDATES, measure
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig


def judged(config: RunConfig, count: int) -> dict[str, Any]:
    run, num_classes = Run(Folder(config.run)), 1 + len(config.resolve_vocabulary().classes)
    truths = {
        row["image_id"]: row["truth"]
        for part in run.parts("images")
        for row in run.read_part("images", part, columns=["image_id", "truth"]).to_pylist()
    }
    matrices: list[Any] = [0] * len(CANDIDATES)

    def compare(image_id: str, labels: Any) -> None:
        truth = decode_label_png(truths[image_id])
        for number, own in enumerate(labels):
            matrices[number] = matrices[number] + confusion_matrix(own, truth, num_classes)

    found = measure(config, count, compare)
    rows = [
        {"settings": one.overrides(), "agreement": score, "miou": 100 * mean_iou(matrices[CANDIDATES.index(one)])}
        for one, score in found
    ]
    ranks = [rankdata([row[key] for row in rows]) for key in ("agreement", "miou")]
    return {"rows": rows, "spearman": float(np.corrcoef(ranks)[0, 1])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", metavar="RUN_FILE")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    result = judged(load_config(arguments.run_file, arguments.overrides), arguments.count)
    show(result["rows"], f"Spearman {result['spearman']:.2f}")
    write_json(arguments.json, result)
