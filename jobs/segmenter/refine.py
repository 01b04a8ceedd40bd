"""Stage `refined`: what a segmenter said, redrawn along the superpixels of the run (method M5.3), or by a dense CRF."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import keep_images, map_rows, start_rows, write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb, encode_grey_png, encode_label_png
from fmwsss.core.schemas import DECODED_PAYLOAD, PREDICTIONS, REFINED, maps_from_bytes, superpixels_from_row
from fmwsss.core.segmenter.refine import refine_by_crf, refine_labels
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.segmenter import PredictSection
from fmwsss.jobs.declarations import Judged, Stage
from fmwsss.jobs.images.decode import decode_row
from fmwsss.jobs.seeds.maps import PROMPTS_OF, clip_operator
from fmwsss.jobs.seeds.methods import MAPS_COLUMN

SOURCE_OF = {"sams": "superpixels", "crf": "images"}  # what a method reads beside the predictions
PREDICTED_PAYLOAD = [PREDICTIONS.field("labels"), PREDICTIONS.field("classes")]
REFINED_PAYLOAD = [field for field in REFINED if field.name != "image_id"]
# A class of fewer pixels gets no map: eq. 8 would make some superpixel its best one all the same.
MIN_MAPPED_SHARE = 0.005


def refined_stage(
    config: RunConfig,
    name: str,
    predicted: str,
    home: str,
    method: Literal["sams", "crf"],
    judged: tuple[Judged, ...] = (),
) -> Stage:
    """The stage that refines predictions with superpixels, or with the images; one task a shard.

    No model has a part in it, unless class maps are to have a say (`predict.cam_weight`): then decode | CLIP | refine.

    Args:
        config: the run file.
        name: where the refined labels go.
        predicted: the stage of the predictions.
        home: folder of the run in the run with images and superpixels, with a slash at its end; empty for the run.
        method: `sams`, or `crf`, which needs no superpixels.
        judged: what of the labels the report compares with the ground truth.
    """
    section, source = config.predict, SOURCE_OF[method]
    prompts = (PROMPTS_OF["fine"],) if section.cam_weight and config.seeds.fine.needs_prompts else ()

    def settings() -> dict[str, Any]:
        found: dict[str, Any] = {"method": method, "png": section.png}
        if method == "sams":
            found["alpha"] = section.alpha
            if section.uncovered != "segmenter":
                found["uncovered"] = section.uncovered
        if section.cam_weight:
            maps_settings = {"clip": config.clip.model_dump(), "seeds": config.seeds.fine.model_dump(mode="json")}
            found |= {"cam_weight": section.cam_weight, **maps_settings}
        return found

    return Stage(
        name=name,
        unit="images",
        reads=(predicted, f"{home}{source}", *prompts),
        settings=settings,
        operators=lambda run: _operators(config, run, name, predicted, source),
        cost=None,
        judged=judged,
    )


def _operators(config: RunConfig, learned: Run, name: str, predicted: str, source: str) -> list[Operator]:
    """The chain of `refined_stage`; the prompts of class maps are those of the run `learned`."""
    section, cluster = config.predict, config.cluster
    run, stage = learned.within(name)
    _, predicted = learned.within(predicted)
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    arguments = {
        "run": run,
        "predicted": predicted,
        "stage": stage,
        "vocabulary": config.resolve_vocabulary(),
        "section": section,
        "source": source,
        "maps": config.seeds.fine.maps if section.cam_weight else None,
    }
    operators = [Operator(refine_shard, arguments, num_cpus=plan.helper_cpus)]
    if section.cam_weight:
        prompts = (learned.folder.child(PROMPTS_OF["fine"]), PROMPTS_FILE)
        decode = {"run": run, "predicted": predicted, "stage": stage}
        operators = [
            Operator(decode_predicted_shard, decode, num_cpus=plan.helper_cpus),
            clip_operator(config, plan, config.seeds.fine, prompts, stage),
            *operators,
        ]
    return operators


def decode_predicted_shard(block: pa.Table, run: Run, predicted: str, stage: str) -> pa.Table:
    """A block that names one part in, its predicted images out, decoded, with those classes that are to get maps.

    Args:
        block: of one row.
        run: of what was predicted.
        predicted: the stage with labels.
        stage: for the failures table.

    Returns:
        A table of `carried(DECODED_PAYLOAD)`.
    """
    part = block["part"][0].as_py()
    said = run.read_part(predicted, part, ["image_id", "labels", "classes"]).to_pylist()
    images = run.read_part("images", part, ["image_id", "image"]).to_pylist()
    encoded = {row["image_id"]: row["image"] for row in images}

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return decode_row({"image": encoded[row["image_id"]], "classes": _mapped(row["labels"], row["classes"])})

    return map_rows(start_rows(part, said, PREDICTED_PAYLOAD), decode, DECODED_PAYLOAD, stage)


def _mapped(labels: bytes, classes: list[str]) -> list[str]:
    """The predicted classes that get maps, none if it would be one alone; `classes` is in the order of indices."""
    _, counts = np.unique(decode_label_png(labels), return_counts=True)
    shares = counts[-len(classes) :] / counts.sum() if classes else []
    mapped = [name for name, share in zip(classes, shares, strict=True) if share >= MIN_MAPPED_SHARE]
    return mapped if len(mapped) > 1 else []


def refine_shard(
    block: pa.Table,
    run: Run,
    predicted: str,
    stage: str,
    vocabulary: Vocabulary,
    section: PredictSection,
    source: str,
    maps: str | None,
) -> pa.Table:
    """A block that names one part, or has its class maps, in; refined labels and failures written, counts out.

    Args:
        block: of one row, or of class maps.
        run: of what was predicted.
        predicted: the stage with labels and scores.
        stage: that is written.
        vocabulary: of the run.
        section: of the run file.
        source: the stage with superpixels, or `images` for a CRF.
        maps: the column of class maps in the block; None without.

    Returns:
        One row of SUMMARY.
    """
    part = block["part"][0].as_py()
    columns = ["image_id", "image"] if source == "images" else None
    other = {row["image_id"]: row for row in run.read_part(source, part, columns).to_pylist()}
    said = {row["image_id"]: row for row in run.read_part(predicted, part).to_pylist()}
    if maps is None:
        block = start_rows(part, [{"image_id": image_id} for image_id in said], [])
    # An image without superpixels is told in failures/superpixels; here it is left out.
    refined = map_rows(
        keep_images(block, other),
        lambda row: _refined_row(said[row["image_id"]], other[row["image_id"]], vocabulary, section, row, maps),
        REFINED_PAYLOAD,
        stage,
    )
    return write_block(refined, run, stage, REFINED, png_column="labels" if section.png else None)


def _refined_row(
    row: dict[str, Any],
    other: dict[str, Any],
    vocabulary: Vocabulary,
    section: PredictSection,
    mapped: dict[str, Any],
    maps: str | None,
) -> dict[str, Any]:
    indices = vocabulary.indices(row["classes"])
    probabilities = maps_from_bytes(row["probabilities"], 1 + len(indices), row["grid_height"], row["grid_width"])
    if "image" in other:
        image = decode_rgb(other["image"], max_pixels=UNLIMITED)  # its size was checked when it came in
        labels, confidence = refine_by_crf(image, probabilities, indices)
        of_superpixels: dict[str, Any] = {"coverage": None, "superpixel_class": [], "scores": []}
    else:
        cams, own = None, vocabulary.indices(mapped["classes"]) if maps else []
        if maps and own:
            cams = maps_from_bytes(mapped[MAPS_COLUMN[maps]], len(own), mapped["grid_height"], mapped["grid_width"])
        said, superpixels = decode_label_png(row["labels"]), superpixels_from_row(other)
        with_maps = (cams, own, section.cam_weight)
        found = refine_labels(
            superpixels, probabilities, indices, said, section.alpha, *with_maps, uncovered=section.uncovered
        )
        labels, confidence = found.labels, found.confidence
        of_superpixels = {
            "coverage": found.coverage,
            "superpixel_class": found.superpixel_class,
            "scores": found.scores.reshape(-1),
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
