"""How good seeds could be by the grid of points: superpixels named by the ground truth, and what they cost.

    python -m benchmarks.mask_ceiling --sam factories:mobile_sam --images FOLDER --truth FOLDER [--list FILE]
        [--grids 8 16 32 32+1] [--predicted-iou .7] [--stability .8] [--occupation .3] [--device cuda]
        [--out FOLDER] [--json FILE]

`16+1` is a grid of 16 x 16 points with one layer of crops. Ground truth are label PNGs with the names of the images; it
names superpixels and chooses nothing. `ms_network` is the time of encoder, decoder and box suppression on the device;
what follows runs in processes beside it. With --out the superpixels of every grid are written as Parquet.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.table import show, write_json
from fmwsss.core.images import decode_label_png
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.schemas import SUPERPIXELS, superpixels_row
from fmwsss.core.seeds.ceilings import named_by_truth
from fmwsss.core.superpixels.postprocess import Detections, finish
from fmwsss.core.superpixels.proposal_settings import ProposalSettings


def settings_of(grid: str, predicted_iou: float, stability: float, occupation: float | None = 0.3) -> ProposalSettings:
    """`16+1`: 16 points a side, one layer of crops."""
    points, _, crops = grid.partition("+")
    return ProposalSettings(
        points_per_side=int(points), crop_layers=int(crops or 0), predicted_iou_threshold=predicted_iou,
        stability_threshold=stability, occupation_threshold=occupation,
    )  # fmt: skip


def points_of(settings: ProposalSettings) -> int:
    """Prompts an image, over all crops."""
    return sum(4**layer * settings.points_in_layer(layer) ** 2 for layer in range(settings.crop_layers + 1))


def finished(
    image_id: str, detections: Detections, settings: ProposalSettings, truth: Path | None, num_classes: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The row of an image's superpixels, and the confusion matrix of what the truth makes of them."""
    superpixels = finish(detections, settings)
    row = superpixels_row(image_id, superpixels)
    if truth is None or not truth.exists():
        return row, None
    labels = decode_label_png(truth.read_bytes())
    return row, confusion_matrix(named_by_truth(superpixels, labels), labels, num_classes)


def measure(
    sam: Any, paths: list[Path], truth: Path | None, judged: set[str], settings: ProposalSettings, num_classes: int,
    pool: ProcessPoolExecutor,
) -> tuple[dict[str, Any], pa.Table]:  # fmt: skip
    """One row of the table, and the superpixels of all images."""
    import torch

    from fmwsss.core.superpixels.sam import detect

    times_ms, waiting = [], []
    for path in paths:
        image = np.array(Image.open(path).convert("RGB"))
        began_s = time.perf_counter()
        found = detect(sam, image, settings)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times_ms.append(1000 * (time.perf_counter() - began_s))
        own = truth / f"{path.stem}.png" if truth and path.stem in judged else None
        waiting.append(pool.submit(finished, path.stem, found, settings, own, num_classes))
    done = [task.result() for task in waiting]
    rows, matrices = [row for row, _ in done], [matrix for _, matrix in done if matrix is not None]
    return {
        "points_per_side": settings.points_per_side,
        "crop_layers": settings.crop_layers,
        "points": points_of(settings),
        "predicted_iou": settings.predicted_iou_threshold,
        "stability": settings.stability_threshold,
        "occupation": settings.occupation_threshold,
        "superpixels": float(np.mean([len(row["level"]) for row in rows])),
        "ms_network": float(np.median(times_ms)),
        "judged": len(matrices),
        "ceiling": 100 * mean_iou(np.sum(matrices, axis=0)) if matrices else None,
    }, pa.Table.from_pylist(rows, schema=SUPERPIXELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", required=True, help="factory (package.module:function)")
    parser.add_argument("--images", required=True, type=Path, help="a folder of .jpg files")
    parser.add_argument("--truth", type=Path, help="a folder of label PNGs")
    parser.add_argument("--list", type=Path, help="ids, one a line, of the images that are judged; all if left out")
    parser.add_argument("--only-listed", action="store_true", help="make superpixels of those alone")
    parser.add_argument("--count", type=int, help="the first images by name")
    parser.add_argument("--grids", nargs="+", default=["8", "16", "32", "32+1"])
    parser.add_argument("--predicted-iou", type=float, default=0.7)
    parser.add_argument("--stability", type=float, default=0.8)
    parser.add_argument("--occupation", type=float, default=0.3, help="0: masks may cover each other")
    parser.add_argument("--num-classes", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    from fmwsss.cluster.models.factories import find_factory

    sam = find_factory(options.sam)().eval().requires_grad_(False).to(options.device)
    paths = sorted(options.images.glob("*.jpg"))[: options.count]
    judged = set(options.list.read_text().split()) if options.list else {path.stem for path in paths}
    if options.only_listed:
        paths = [path for path in paths if path.stem in judged]
    rows = []
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for grid in options.grids:
            settings = settings_of(grid, options.predicted_iou, options.stability, options.occupation or None)
            row, table = measure(sam, paths, options.truth, judged, settings, options.num_classes, pool)
            rows.append(row)
            print(row, flush=True)
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, options.out / f"superpixels_{grid}.parquet", compression="zstd")
            write_json(options.json, {"images": len(paths), "rows": rows})
    show(rows, f"superpixels of {len(paths)} images, named by the ground truth", options.device)


if __name__ == "__main__":
    main()
