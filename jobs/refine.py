"""Stage `refined`: what a segmenter said, redrawn along the superpixels of the run (method M5.3), or by a dense CRF."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cluster.ledger import Receipt, Run
from cluster.resources import plan_replicas
from cluster.rows import map_rows, start_rows, write_block
from cluster.shards import Operator
from fmwsss_core.images import decode_label_png, decode_rgb, encode_grey_png, encode_label_png
from fmwsss_core.records import PREDICTIONS, REFINED, maps_from_bytes, superpixels_from_row
from fmwsss_core.segmenter.refinement import refine_by_crf, refine_labels
from fmwsss_core.vocabulary import Vocabulary
from jobs.config import RunConfig
from jobs.stage import begin_stage, run_sharded, upstream

SOURCE_OF = {"sams": "superpixels", "crf": "images"}  # what a method reads beside the predictions
REFINED_PAYLOAD = [field for field in REFINED if field.name != "image_id"]
PREDICTIONS_PAYLOAD = [field for field in PREDICTIONS if field.name != "image_id"]


def refine_images(config: RunConfig, run: Run, predicted: str, stage: str, method: Literal["sams", "crf"]) -> Receipt:
    """Refines the predictions of a run with its superpixels, or with its images; one task a shard, no model.

    Args:
        config: the run file.
        run: with the predictions and, for `sams`, `superpixels/`.
        predicted: the stage of the predictions.
        stage: where the refined labels go.
        method: `sams`, or `crf`, which needs no superpixels.

    Raises:
        ValueError: predictions or superpixels are not complete, or every image failed.
    """
    source = SOURCE_OF[method]
    other, said = upstream(run, stage, [source, predicted])
    section = config.predict
    settings: dict[str, Any] = {"method": method, "png": section.png}
    if method == "sams":
        settings["alpha"] = section.alpha
    started = begin_stage(run, stage, settings, [other, said])
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
        "source": source,
        "png": section.png,
    }
    operators = [Operator(refine_shard, arguments, num_cpus=plan.helper_cpus)]
    return run_sharded(run, started, said.parts, said.num_rows, operators, config.max_failures)


def refine_shard(
    block: pa.Table, run: Run, predicted: str, stage: str, vocabulary: Vocabulary, alpha: float, source: str, png: bool
) -> pa.Table:
    """A block that names one part in, its refined labels and failures written, its counts out."""
    part = block["part"][0].as_py()
    columns = ["image_id", "image"] if source == "images" else None
    other = {row["image_id"]: row for row in run.folder.child(source).read_table(part, columns).to_pylist()}
    said = [row for row in run.folder.child(predicted).read_table(part).to_pylist() if row["image_id"] in other]
    refined = map_rows(
        start_rows(part, said, PREDICTIONS_PAYLOAD),
        lambda row: _refined_row(row, other[row["image_id"]], vocabulary, alpha),
        REFINED_PAYLOAD,
        stage,
    )
    return write_block(refined, run, stage, REFINED, png_column="labels" if png else None)


def _refined_row(row: dict[str, Any], other: dict[str, Any], vocabulary: Vocabulary, alpha: float) -> dict[str, Any]:
    indices = vocabulary.indices(row["classes"])
    maps = maps_from_bytes(row["probabilities"], 1 + len(indices), row["grid_height"], row["grid_width"])
    if "image" in other:
        image = decode_rgb(other["image"], max_pixels=2**62)  # its size was checked when it came in
        labels, confidence = refine_by_crf(image, maps, indices)
        of_superpixels: dict[str, Any] = {"coverage": None, "superpixel_class": [], "scores": []}
    else:
        said = decode_label_png(row["labels"])
        seed = refine_labels(superpixels_from_row(other), maps, indices, said, alpha)
        labels, confidence = seed.labels, seed.confidence
        of_superpixels = {
            "coverage": seed.coverage,
            "superpixel_class": seed.superpixel_class,
            "scores": seed.scores.reshape(-1),
        }
    return {
        "height_px": row["height_px"],
        "width_px": row["width_px"],
        "labels": encode_label_png(labels),
        "classes": [vocabulary.classes[index - 1] for index in indices if np.any(labels == index)],
        "confidence": encode_grey_png(confidence),
        "mean_confidence": float(confidence.mean(dtype=np.float64)),
        **of_superpixels,
    }


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("predict")
