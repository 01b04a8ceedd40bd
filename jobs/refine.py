"""Stage `refined`: what a segmenter said, redrawn along the superpixels of the run (method M5.3)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.ledger import Receipt, Run
from cluster.resources import plan_replicas
from cluster.rows import map_rows, split_rows, start_rows, summary
from cluster.shards import Operator
from fmwsss_core.images import decode_label_png, encode_label_png
from fmwsss_core.records import PREDICTIONS, REFINED, maps_from_bytes, superpixels_from_row
from fmwsss_core.segmenter.refinement import refine_labels
from fmwsss_core.vocabulary import Vocabulary
from jobs.config import RunConfig
from jobs.stage import begin_stage, run_sharded, upstream

REFINED_PAYLOAD = [field for field in REFINED if field.name != "image_id"]
PREDICTIONS_PAYLOAD = [field for field in PREDICTIONS if field.name != "image_id"]


def refine_images(config: RunConfig, run: Run, predicted: str, stage: str) -> Receipt:
    """Refines the predictions of a run with its superpixels; one task a shard, no model.

    Args:
        config: the run file.
        run: with `superpixels/` and the predictions.
        predicted: the stage of the predictions.
        stage: where the refined labels go.

    Raises:
        ValueError: predictions or superpixels are not complete, or every image failed.
    """
    superpixels, said = upstream(run, stage, ["superpixels", predicted])
    section = config.predict
    started = begin_stage(run, stage, {"alpha": section.alpha, "png": section.png}, [superpixels, said])
    if started.receipt:
        return started.receipt
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    arguments = {
        "run": run,
        "predicted": predicted,
        "stage": stage,
        "vocabulary": config.resolve_vocabulary(),
        "alpha": section.alpha,
        "png": section.png,
    }
    operators = [Operator(refine_shard, arguments, num_cpus=plan.helper_cpus)]
    return run_sharded(run, started, said.parts, said.num_rows, operators, config.max_failures)


def refine_shard(
    block: pa.Table, run: Run, predicted: str, stage: str, vocabulary: Vocabulary, alpha: float, png: bool
) -> pa.Table:
    """A block that names one part in, its refined labels and failures written, its counts out."""
    part = block["part"][0].as_py()
    superpixels = {row["image_id"]: row for row in run.folder.child("superpixels").read_table(part).to_pylist()}
    said = [row for row in run.folder.child(predicted).read_table(part).to_pylist() if row["image_id"] in superpixels]
    refined = map_rows(
        start_rows(part, said, PREDICTIONS_PAYLOAD),
        lambda row: _refined_row(row, superpixels[row["image_id"]], vocabulary, alpha),
        REFINED_PAYLOAD,
        stage,
    )
    rows, failures = split_rows(refined, REFINED)
    if png:
        names = rows["image_id"].to_pylist()
        files = {f"png/{name}.png": data for name, data in zip(names, rows["labels"].to_pylist(), strict=True)}
        run.folder.child(stage).write_many(files)
    run.write_part(stage, part, rows, REFINED, failures)
    return summary(part, rows.num_rows, len(failures))


def _refined_row(
    row: dict[str, Any], superpixels_row: dict[str, Any], vocabulary: Vocabulary, alpha: float
) -> dict[str, Any]:
    indices = vocabulary.indices(row["classes"])
    maps = maps_from_bytes(row["probabilities"], 1 + len(indices), row["grid_height"], row["grid_width"])
    superpixels = superpixels_from_row(superpixels_row)
    seed = refine_labels(superpixels, maps, indices, decode_label_png(row["labels"]), alpha)
    buffer = io.BytesIO()
    Image.fromarray(np.round(seed.confidence * 255).astype(np.uint8)).save(buffer, "PNG")
    return {
        "height_px": row["height_px"],
        "width_px": row["width_px"],
        "labels": encode_label_png(seed.labels),
        "classes": [vocabulary.classes[index - 1] for index in indices if index not in seed.missing],
        "confidence": buffer.getvalue(),
        "mean_confidence": float(seed.confidence.mean(dtype=np.float64)),
        "coverage": float(seed.coverage),
        "superpixel_class": seed.superpixel_class,
        "scores": seed.scores.reshape(-1),
    }


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("predict")
