"""Of stage `reports`, the figures: how good maps and seeds are, by ground truth where there is one, and without it.

Ground truth is read here and for the page, nowhere else. Nothing that this stage finds flows back.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
from fmwsss.cluster.storage.json_files import read_json
from fmwsss.cluster.storage.ledger import Run, home_of
from fmwsss.cluster.telemetry.progress import StageProgress
from fmwsss.core.errors import InputError
from fmwsss.core.images import decode_label_png
from fmwsss.core.labels import IGNORE
from fmwsss.core.metrics import boundary_counts, boundary_iou, confusion_matrix, iou_per_class, mean_iou, pixel_accuracy
from fmwsss.core.schemas import maps_from_bytes, superpixels_from_row
from fmwsss.core.seeds.ceilings import POWERS, cut_best, named_by_truth
from fmwsss.core.seeds.sams import label_maps_from_cam
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.images.labelled import read_labelled
from fmwsss.jobs.reports.image_figures import FIGURES, FIGURES_FILE, figures_of
from fmwsss.jobs.reports.tag_quality import tag_quality
from fmwsss.jobs.review.applied import Relabelled, applied, relabel, relabelled_of
from fmwsss.jobs.run_layout import METRICS_FILE
from fmwsss.jobs.stages import upstream

STAGE = "reports"
SEED_STATISTICS = ("mean_confidence", "coverage", "missing")


@dataclass(frozen=True)
class Row:
    """One line of the final table: which labels are judged.

    Attributes:
        name: as in `metrics.json`.
        stage: whose table has them, by its name in the run that is judged.
        column: class maps (cut at the background power) or label maps; or a ceiling, which is made of the ground truth:
            `named` (superpixels), `cut` (the maps that classify the superpixels).
        background_power: of class maps; None of label maps.
        maps: for `cut`, the column of those maps.
        source: of class maps.
        needs: the stages whose time these labels cost.
    """

    name: str
    stage: str
    column: str
    background_power: float | None
    maps: str | None
    source: str | None
    needs: tuple[str, ...]

    @property
    def is_map(self) -> bool:
        """Whether class maps are judged, which have a background power."""
        return self.background_power is not None

    @property
    def is_ceiling(self) -> bool:
        """Whether the ground truth made these labels: what is lost before anything is decided."""
        return self.column in ("named", "cut")


def rows_of(run: Run, stages: Sequence[Stage]) -> list[Row]:
    """The lines that the stages of a run declare, of those stages that are complete.

    Args:
        run: the run that is judged; perhaps one in a run.
        stages: its stages, by their full names.
    """
    local = {stage.name: stage.name.removeprefix(home_of(stage.name)) for stage in stages}
    by_name = {stage.name: stage for stage in stages}

    def before(stage: Stage, without: tuple[str, ...] = ()) -> list[str]:
        """A stage and what it reads, directly or not; taking in the images is no part of the method."""
        read = [by_name[name] for name in stage.reads if name in by_name and local[name] not in without]
        found = [name for other in read if other.reads for name in before(other)]
        return [*dict.fromkeys(found), local[stage.name]]

    rows = [
        Row(judged.name, local[stage.name], judged.column, judged.background_power, judged.maps, judged.source,
            tuple(dict.fromkeys(before(stage, judged.without))))
        for stage in stages
        if stage.judged and run.receipt(local[stage.name])
        for judged in stage.judged
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row.is_ceiling)


RESULT = pa.schema(
    [
        ("part", pa.string()),
        ("num_images", pa.list_(pa.int64())),  # of each row of the table
        ("num_judged", pa.list_(pa.int64())),
        ("counts", pa.binary()),  # confusion matrices: rows x (1 + powers) x classes x (classes + 1)
        ("boundaries", pa.binary()),  # rows x classes x 3
        ("class_images", pa.list_(pa.int64())),  # images that show each class in their ground truth
        ("labelled", pa.list_(pa.int64())),  # images that each class is a label of
        ("seeded", pa.list_(pa.int64())),  # those whose last seed has a pixel of it
        ("statistics", pa.list_(pa.float64())),  # sums over images: rows x SEED_STATISTICS
        ("failures", pa.list_(pa.string())),  # images that could not be judged, and why
        ("figures", pa.list_(pa.struct(list(FIGURES)))),  # of single images
    ]
)


def run(config: RunConfig, run: Run, stages: Sequence[Stage]) -> dict[str, Any]:
    """Judges the run's maps, seeds and predictions, writes `reports/metrics.json`; returns what it wrote.

    Figures of predictions for validation images, which have a split of their own, are taken over from where they were
    judged.

    Args:
        config: the run file.
        run: the run folder.
        stages: of the run, which declare what is judged.

    Raises:
        ValueError: the seeds are not complete.
    """
    metrics = _judge_rows(config, run, stages, ["images", "seeds/coarse", "seeds/fine"])
    if config.labels.is_tagged and run.receipt("tags/labels"):
        metrics["tags"] = tag_quality(run, config.resolve_vocabulary().classes)
    validation = run.folder.child("predictions/validation/reports")
    if config.segmenter and config.segmenter.validation and validation.exists(METRICS_FILE):
        judged = read_json(validation, METRICS_FILE)
        metrics["rows"] += [{**row, "name": f"validation: {row['name']}"} for row in judged["rows"]]
    return _write(run, metrics)


def run_predictions(config: RunConfig, run: Run, stages: Sequence[Stage]) -> dict[str, Any]:
    """The same for a data set that was predicted, which is a run in a run, with its own stages.

    Args:
        config: the run file.
        run: the run in the run.
        stages: of that run.

    Returns:
        What the table shows.
    """
    return _write(run, _judge_rows(config, run, stages, ["images", "predicted"]))


def _write(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
    run.folder.child(STAGE).write(METRICS_FILE, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())
    return metrics


def _judge_rows(config: RunConfig, run: Run, stages: Sequence[Stage], demanded: list[str]) -> dict[str, Any]:
    images, *_ = upstream(run, STAGE, demanded)
    rows = rows_of(run, stages)
    vocabulary = config.resolve_vocabulary()
    num_classes = 1 + len(vocabulary.classes)
    shape = (len(rows), 1 + len(POWERS), num_classes, num_classes + 1)
    counts, statistics = np.zeros(shape, np.int64), np.zeros((len(rows), len(SEED_STATISTICS)))
    boundaries = np.zeros((len(rows), num_classes, 3), np.int64)
    num_images, num_judged, unjudged = np.zeros(len(rows), int), np.zeros(len(rows), int), []
    class_images = np.zeros(num_classes, int)
    labelled, seeded = np.zeros(num_classes, int), np.zeros(num_classes, int)
    # What is predicted is a run in the run, and has no tags.
    labels = config.labels.stage if config.labels.stage in {stage.name for stage in stages} else "images"
    relabelled = relabelled_of(applied(run), vocabulary)
    arguments = {
        "run": run, "vocabulary": vocabulary, "rows": tuple(rows), "label_stage": labels, "relabelled": relabelled,
    }  # fmt: skip
    figures: dict[str, pa.Table] = {}
    with StageProgress(STAGE, len(images.parts), "parts") as progress:

        def on_done(result: dict[str, Any]) -> None:
            nonlocal counts, boundaries, statistics, num_images, num_judged, class_images, labelled, seeded
            counts += np.frombuffer(zlib.decompress(result["counts"]), np.int64).reshape(shape)
            boundaries += np.frombuffer(zlib.decompress(result["boundaries"]), np.int64).reshape(boundaries.shape)
            statistics += np.reshape(result["statistics"], statistics.shape)
            num_images += result["num_images"]
            num_judged += result["num_judged"]
            class_images += result["class_images"]
            labelled += result["labelled"]
            seeded += result["seeded"]
            unjudged.extend(result["failures"])
            figures[result["part"]] = pa.Table.from_pylist(result["figures"], schema=FIGURES)
            progress.advance(1, len(result["failures"]))

        map_shards([{"part": part} for part in images.parts], [Operator(judge_shard, arguments, num_cpus=0.5)], on_done)
    told = pa.concat_tables([FIGURES.empty_table(), *(figures[part] for part in sorted(figures))])
    run.folder.child(STAGE).write_table(FIGURES_FILE, told, FIGURES)
    num_listed = images.num_rows + images.num_failures
    split = split_name(config)
    entries = []
    for i, row in enumerate(rows):
        if row.is_ceiling and not num_judged[i]:
            continue
        entry = {"name": row.name, "split": split, **_quality(counts[i, 0], boundaries[i], vocabulary)}
        entry |= {"images": int(num_images[i]), "images_judged": int(num_judged[i])}
        entry["failures"] = num_listed - int(num_images[i])
        entry |= _about(row, counts[i], statistics[i], int(num_images[i]))
        if row.source:
            entry["source"] = row.source
        entry["seconds_per_image"] = _seconds(run, row)
        entries.append(entry)
    names = [stage.name.removeprefix(home_of(stage.name)) for stage in stages]
    own = [receipt for name in names if (receipt := run.receipt(name))]
    return {
        "split": split,
        "truth": bool(num_judged.any()),
        "images": num_listed,
        "images_of_class": {
            name: int(count)
            for name, count in zip(("background", *vocabulary.classes), class_images, strict=True)
            if count
        },
        "labels": {
            name: {"images": int(labelled[i]), "seeded": int(seeded[i])}
            for i, name in enumerate(vocabulary.classes, start=1)
            if labelled[i]
        },
        "rows": entries,
        "failures": {receipt.stage: receipt.num_failures for receipt in own if receipt.num_failures},
        "not_judged": sorted(unjudged),
    }


def split_name(config: RunConfig) -> str:
    """The list of images that figures are about; never to be left out of a table of mIoU (method M6)."""
    data = config.dataset
    if data.kind == "toy":
        return f"toy scenes {data.first_seed} to {data.first_seed + data.num_images - 1}"
    return data.split if data.max_images is None else f"{data.split}, first {data.max_images}"


def judge_shard(
    block: pa.Table,
    run: Run,
    vocabulary: Vocabulary,
    rows: tuple[Row, ...],
    label_stage: str = "images",
    relabelled: Mapping[str, Relabelled] | None = None,
) -> pa.Table:
    """One part's confusion matrices and sums, as one row of RESULT.

    Args:
        block: of one row.
        run: the run folder.
        vocabulary: of the run.
        rows: of the table.
        label_stage: the stage that has the labels, as in `read_labelled`.
        relabelled: what people said of labels, by image.

    Returns:
        Counts, compressed, and sums.
    """
    part = block["part"][0].as_py()
    num_classes = 1 + len(vocabulary.classes)
    counts = np.zeros((len(rows), 1 + len(POWERS), num_classes, num_classes + 1), np.int64)
    boundaries = np.zeros((len(rows), num_classes, 3), np.int64)
    statistics = np.zeros((len(rows), len(SEED_STATISTICS)))
    class_images = np.zeros(num_classes, np.int64)
    num_images, num_judged, failures = [0] * len(rows), [0] * len(rows), []
    truths = run.read_part("images", part, columns=["image_id", "truth"]).to_pylist()
    known = read_labelled(run, part, ["image_id", "classes"], label_stage)
    relabel(known, relabelled or {})
    classes = {row["image_id"]: row["classes"] or () for row in known}
    tables = {stage: _labels_by_id(run, stage, part) for stage in {row.stage for row in rows}}
    seeds = next((tables[row.stage] for row in reversed(rows) if row.column == "seed"), {})
    labelled, seeded = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    figures: list[dict[str, Any]] = []
    of_stage = {row.stage: tables[row.stage] for row in rows if row.column == "seed"}
    for image in truths:
        for index in vocabulary.indices(classes.get(image["image_id"], ())):
            labelled[index] += 1
            own = seeds.get(image["image_id"])
            seeded[index] += own is not None and vocabulary.classes[index - 1] not in own["missing"]
        try:
            truth = decode_label_png(image["truth"]) if image["truth"] is not None else None
            coarse, fine = (of_stage.get(f"seeds/{name}", {}).get(image["image_id"]) for name in ("coarse", "fine"))
            if own := figures_of(image["image_id"], coarse, fine, truth, num_classes):
                figures.append(own)
            if truth is not None:
                class_images += np.bincount(np.unique(truth[truth != IGNORE]), minlength=num_classes)[:num_classes]
            for i, row in enumerate(rows):
                labels = tables[row.stage].get(image["image_id"])
                if labels is None:
                    continue
                num_images[i] += 1
                statistics[i] += _statistics(labels)
                if truth is not None:
                    if row.is_ceiling:
                        made = [_ceiling(row, labels, vocabulary, truth)]
                    else:
                        made = _label_maps(row, labels, vocabulary)
                    counts[i, : len(made)] += [confusion_matrix(own, truth, num_classes) for own in made]
                    boundaries[i] += boundary_counts(made[0], truth, num_classes)
                    num_judged[i] += 1
        except InputError as error:
            failures.append(f"{image['image_id']}: {error}")
    result = {
        "part": part,
        "num_images": num_images,
        "num_judged": num_judged,
        "counts": zlib.compress(counts.tobytes(), level=1),
        "boundaries": zlib.compress(boundaries.tobytes(), level=1),
        "class_images": class_images,
        "labelled": labelled,
        "seeded": seeded,
        "statistics": statistics.ravel(),
        "failures": failures,
        "figures": figures,
    }
    return pa.Table.from_pylist([result], schema=RESULT)


def _labels_by_id(run: Run, stage: str, part: str) -> dict[str, dict[str, Any]]:
    """Rows of SEEDS, PREDICTIONS or REFINED, without what is not judged; or of SUPERPIXELS."""
    if stage == "superpixels":
        return {row["image_id"]: row for row in run.read_part(stage, part).to_pylist()}
    columns = ["image_id", "height_px", "width_px", "classes", "mean_confidence"]
    if stage.startswith("seeds/"):
        columns += ["seed", "grid_height", "grid_width", "cam", "refined_cam", "coverage", "missing"]
    else:
        columns += ["labels", *(["coverage"] if stage.endswith("refined") else [])]
    table = run.read_part(stage, part, columns=columns)
    return {row["image_id"]: row for row in table.to_pylist()}


def _statistics(labels: dict[str, Any]) -> tuple[float, float, float]:
    """Of SEED_STATISTICS; those that a table does not have count as 0 and are not told."""
    return labels.get("mean_confidence", 0.0), labels.get("coverage") or 0.0, float(bool(labels.get("missing")))


def _label_maps(row: Row, labels: dict[str, Any], vocabulary: Vocabulary) -> list[UInt8[np.ndarray, "height width"]]:
    """The label map to be judged, and for class maps those of the other background powers after it."""
    if row.background_power is None:
        return [decode_label_png(labels[row.column])]
    indices = vocabulary.indices(labels["classes"])
    maps = _maps_of(labels, row.column)
    powers = (row.background_power, *POWERS)
    return label_maps_from_cam(maps, indices, labels["height_px"], labels["width_px"], powers)


def _ceiling(
    row: Row,
    labels: dict[str, Any],
    vocabulary: Vocabulary,
    truth: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """The labels of a row that the ground truth has a part in."""
    if row.column == "named":
        return named_by_truth(superpixels_from_row(labels), truth)
    assert row.maps is not None
    return cut_best(_maps_of(labels, row.maps), vocabulary.indices(labels["classes"]), truth)


def _maps_of(labels: dict[str, Any], column: str) -> np.ndarray:
    return maps_from_bytes(labels[column], len(labels["classes"]), labels["grid_height"], labels["grid_width"])


def _quality(counts: np.ndarray, boundaries: np.ndarray, vocabulary: Vocabulary) -> dict[str, Any]:
    """mIoU, pixel accuracy, boundary IoU and the IoU of each class; null and empty without truth."""
    if not counts.any():
        return {"miou": None, "pixel_accuracy": None, "boundary_iou": None, "per_class": {}}
    names = ("background", *vocabulary.classes)
    ious = iou_per_class(counts)
    return {
        "miou": mean_iou(counts),
        "pixel_accuracy": pixel_accuracy(counts),
        "boundary_iou": boundary_iou(boundaries),
        "per_class": {name: float(iou) for name, iou in zip(names, ious, strict=True) if not np.isnan(iou)},
    }


def _about(row: Row, counts: np.ndarray, statistics: np.ndarray, num_images: int) -> dict[str, Any]:
    """Metrics specific to the kind of row: maps, seeds or predictions."""
    if row.is_ceiling:
        return {"is_ceiling": True}
    if row.is_map:
        entry: dict[str, Any] = {"background_power": row.background_power}
        if counts.any():
            mious = [mean_iou(matrix) for matrix in counts[1:]]
            best = int(np.argmax(mious))
            entry["best_on_truth"] = {"miou": mious[best], "background_power": POWERS[best]}
        return entry
    means = statistics / max(1, num_images)
    entry = {"mean_confidence": means[0]}
    if row.column == "seed" or means[1] > 0:
        entry["coverage"] = means[1]
    if row.column == "seed":
        entry["share_with_missing_class"] = means[2]
    return entry


def _seconds(run: Run, row: Row) -> float:
    """Wall time of the stages that lead to a row, per image. A stage that was resumed counts from its last start."""
    receipts = [receipt for stage in row.needs if (receipt := run.receipt(stage))]
    return round(sum(receipt.seconds / max(1, receipt.num_rows) for receipt in receipts), 4)
