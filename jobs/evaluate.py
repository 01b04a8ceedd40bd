"""Stage `reports`, first half: how good maps and seeds are, against ground truth where there is one, and without it.

Ground truth is read here and in the preview, nowhere else. Nothing that this stage finds flows back.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from cluster.ledger import Receipt, Run
from cluster.progress import StageProgress
from cluster.shards import Operator, map_shards
from fmwsss_core.images import decode_label_png
from fmwsss_core.metrics import confusion_matrix, iou_per_class, mean_iou
from fmwsss_core.records import maps_from_bytes
from fmwsss_core.seeding import label_map_from_cam
from fmwsss_core.vocabulary import Vocabulary
from jobs.config import RunConfig
from jobs.stage import upstream

STAGE = "reports"
METRICS_FILE = "metrics.json"
# Exponents of the background score that the best-on-truth figure is looked for among; the figure itself uses alpha.
POWERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
SEED_STATISTICS = ("mean_confidence", "coverage", "missing")


@dataclass(frozen=True)
class Row:
    """One line of the final table: which labels are judged.

    Attributes:
        name: as in `metrics.json`.
        seeds: `coarse` or `fine`: whose prompts.
        column: `cam`, `refined_cam`, or `seed`.
    """

    name: str
    seeds: str
    column: str


ROWS = (
    Row("cam", "coarse", "cam"),
    Row("cam+caa", "coarse", "refined_cam"),
    Row("coarse", "coarse", "seed"),
    Row("cam of fine", "fine", "cam"),
    Row("cam+caa of fine", "fine", "refined_cam"),
    Row("fine", "fine", "seed"),
)

RESULT = pa.schema(
    [
        ("part", pa.string()),
        ("num_images", pa.list_(pa.int64())),  # of each of ROWS
        ("num_judged", pa.list_(pa.int64())),
        ("counts", pa.binary()),  # confusion matrices: rows x (1 + powers) x classes x (classes + 1)
        ("statistics", pa.list_(pa.float64())),  # sums over images: rows x SEED_STATISTICS
        ("failures", pa.list_(pa.string())),  # images that could not be judged, and why
    ]
)


def run(config: RunConfig, run: Run) -> dict[str, Any]:
    """Judges the run's maps and seeds and writes `reports/metrics.json`; returns what it wrote.

    Raises:
        ValueError: the seeds are not complete.
    """
    receipts = upstream(run, STAGE, ["images", "superpixels", "prompts/classification", "seeds/coarse",
                                     "prompts/segmentation", "seeds/fine"])  # fmt: skip
    images = receipts[0]
    vocabulary = config.resolve_vocabulary()
    alphas = {"coarse": config.seeds.coarse.alpha, "fine": config.seeds.fine.alpha}
    num_classes = 1 + len(vocabulary.classes)
    shape = (len(ROWS), 1 + len(POWERS), num_classes, num_classes + 1)
    counts, statistics = np.zeros(shape, np.int64), np.zeros((len(ROWS), len(SEED_STATISTICS)))
    num_images, num_judged, unjudged = np.zeros(len(ROWS), int), np.zeros(len(ROWS), int), []
    operator = Operator(judge_shard, {"run": run, "vocabulary": vocabulary, "alphas": alphas}, num_cpus=0.5)
    with StageProgress("evaluate", len(images.parts), "parts") as progress:

        def on_done(result: dict[str, Any]) -> None:
            nonlocal counts, statistics, num_images, num_judged
            counts += np.frombuffer(zlib.decompress(result["counts"]), np.int64).reshape(shape)
            statistics += np.reshape(result["statistics"], statistics.shape)
            num_images += result["num_images"]
            num_judged += result["num_judged"]
            unjudged.extend(result["failures"])
            progress.advance(1, len(result["failures"]))

        map_shards([{"part": part} for part in images.parts], [operator], on_done)
    num_listed = images.num_rows + images.num_failures
    rows = [
        _table_row(
            row, counts[i], statistics[i], int(num_images[i]), int(num_judged[i]), num_listed, vocabulary, alphas
        )
        for i, row in enumerate(ROWS)
    ]
    _add_seconds(rows, receipts)
    metrics = {
        "split": split_name(config),
        "truth": bool(num_judged.any()),
        "images": num_listed,
        "rows": rows,
        "failures": {receipt.stage: receipt.num_failures for receipt in receipts if receipt.num_failures},
        "not_judged": sorted(unjudged),
    }
    run.folder.child(STAGE).write(METRICS_FILE, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())
    return metrics


def split_name(config: RunConfig) -> str:
    """The list of images that figures are about; never to be left out of a table of mIoU (method M6)."""
    data = config.dataset
    if data.kind == "toy":
        return f"toy scenes {data.first_seed} to {data.first_seed + data.num_images - 1}"
    return data.split if data.max_images is None else f"{data.split}, first {data.max_images}"


def judge_shard(block: pa.Table, run: Run, vocabulary: Vocabulary, alphas: dict[str, float]) -> pa.Table:
    """One part's confusion matrices and sums, as one row of RESULT."""
    part = block["part"][0].as_py()
    num_classes = 1 + len(vocabulary.classes)
    counts = np.zeros((len(ROWS), 1 + len(POWERS), num_classes, num_classes + 1), np.int64)
    statistics = np.zeros((len(ROWS), len(SEED_STATISTICS)))
    num_images, num_judged, failures = [0] * len(ROWS), [0] * len(ROWS), []
    truths = run.folder.child("images").read_table(part, columns=["image_id", "truth"]).to_pylist()
    tables = {which: _seeds_by_id(run, which, part) for which in ("coarse", "fine")}
    for image in truths:
        try:
            truth = decode_label_png(image["truth"]) if image["truth"] is not None else None
            for i, row in enumerate(ROWS):
                seed = tables[row.seeds].get(image["image_id"])
                if seed is None:
                    continue
                num_images[i] += 1
                statistics[i] += seed["mean_confidence"], seed["coverage"], bool(seed["missing"])
                if truth is not None:
                    counts[i] += _judge(row, seed, truth, vocabulary, alphas[row.seeds])
                    num_judged[i] += 1
        except ValueError as error:
            failures.append(f"{image['image_id']}: {error}")
    result = {
        "part": part,
        "num_images": num_images,
        "num_judged": num_judged,
        "counts": zlib.compress(counts.tobytes(), level=1),
        "statistics": statistics.ravel(),
        "failures": failures,
    }
    return pa.Table.from_pylist([result], schema=RESULT)


def _seeds_by_id(run: Run, which: str, part: str) -> dict[str, dict[str, Any]]:
    columns = [
        "image_id",
        "height_px",
        "width_px",
        "classes",
        "seed",
        "grid_height",
        "grid_width",
        "cam",
        "refined_cam",
    ]
    table = run.folder.child(f"seeds/{which}").read_table(part, columns=[*columns, *SEED_STATISTICS])
    return {row["image_id"]: row for row in table.to_pylist()}


def _judge(
    row: Row, seed: dict[str, Any], truth: np.ndarray, vocabulary: Vocabulary, alpha: float
) -> Int64[np.ndarray, "powers classes classes+1"]:
    num_classes = 1 + len(vocabulary.classes)
    counts = np.zeros((1 + len(POWERS), num_classes, num_classes + 1), np.int64)
    if row.column == "seed":
        counts[0] = confusion_matrix(decode_label_png(seed["seed"]), truth, num_classes)
        return counts
    indices = vocabulary.indices(seed["classes"])
    maps = maps_from_bytes(seed[row.column], len(indices), seed["grid_height"], seed["grid_width"])
    for i, power in enumerate((alpha, *POWERS)):
        labels = label_map_from_cam(maps, indices, seed["height_px"], seed["width_px"], power)
        counts[i] = confusion_matrix(labels, truth, num_classes)
    return counts


def _table_row(
    row: Row,
    counts: np.ndarray,
    statistics: np.ndarray,
    num_images: int,
    num_judged: int,
    num_listed: int,
    vocabulary: Vocabulary,
    alphas: dict[str, float],
) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": row.name, "miou": None, "per_class": {}}
    if num_judged:
        names = ("background", *vocabulary.classes)
        entry["miou"] = mean_iou(counts[0])
        ious = iou_per_class(counts[0])
        entry["per_class"] = {name: float(iou) for name, iou in zip(names, ious, strict=True) if not np.isnan(iou)}
    entry |= {"images": num_images, "images_judged": num_judged, "failures": num_listed - num_images}
    if row.column != "seed":
        entry["background_power"] = alphas[row.seeds]
        if num_judged:
            mious = [mean_iou(matrix) for matrix in counts[1:]]
            best = int(np.argmax(mious))
            entry["best_on_truth"] = {"miou": mious[best], "background_power": POWERS[best]}
    elif num_images:
        means = statistics / num_images
        entry |= {"mean_confidence": means[0], "coverage": means[1], "share_with_missing_class": means[2]}
    return entry


def _add_seconds(rows: list[dict[str, Any]], receipts: list[Receipt]) -> None:
    """Wall time of the stages that lead to a row, per image. A stage that was resumed counts from its last start."""
    seconds = {receipt.stage: receipt.seconds / max(1, receipt.num_rows) for receipt in receipts}
    needs = {
        "cam": ["prompts/classification", "seeds/coarse"],
        "coarse": ["superpixels", "prompts/classification", "seeds/coarse"],
        "cam of fine": ["superpixels", "prompts/classification", "seeds/coarse", "prompts/segmentation", "seeds/fine"],
    }
    needs |= {"cam+caa": needs["cam"], "cam+caa of fine": needs["cam of fine"], "fine": needs["cam of fine"]}
    for row in rows:
        row["seconds_per_image"] = round(sum(seconds[stage] for stage in needs[row["name"]]), 4)


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("evaluate")
