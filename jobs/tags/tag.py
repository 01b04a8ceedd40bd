"""Stages `tags/scores`, `tags/threshold` and `tags/labels`: from images that nobody has labelled to their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import map_rows, start_rows, write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.replicas.image_tags import TagReplica
from fmwsss.cluster.storage.ledger import NUM_READERS, Receipt, Run
from fmwsss.core.errors import InputError
from fmwsss.core.schemas import IMAGES, TAG_SCORES, TAG_SCORES_PAYLOAD, TAGS
from fmwsss.core.tags.threshold import dataset_threshold, tagged
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.labels import LabelsSection
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, ShardCost, Stage, StepCost
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, upstream
from fmwsss.jobs.tags.corrections import Corrections, hash_of, read_corrections

SCORES, THRESHOLD, LABELS = "tags/scores", "tags/threshold", "tags/labels"
THRESHOLD_FILE = "threshold.json"
_OF_SCORES = {"method", "templates", "max_side_px"}
_GIVEN_PAYLOAD = [IMAGES.field("classes"), *TAG_SCORES_PAYLOAD]
_TAGS_PAYLOAD = [field for field in TAGS if field.name != "image_id"]


def _scores(config: RunConfig) -> list[Stage]:
    if not config.labels.is_tagged:
        return []
    return [
        Stage(
            name=SCORES,
            unit="images",
            reads=("images",),
            of_pixels=True,
            settings=lambda: {
                "clip": config.clip.model_dump(),
                "vocabulary": config.model_dump()["vocabulary"],
                "labels": config.labels.model_dump(mode="json", include=_OF_SCORES),
            },
            operators=lambda run: _score_operators(config, run),
            cost=ShardCost(TagReplica),
        )
    ]


def _threshold(config: RunConfig) -> list[Stage]:
    if not config.labels.is_tagged or config.labels.threshold is not None:
        return []
    cost = StepCost(
        step="tag_threshold_s",
        arguments=(len(config.resolve_vocabulary().classes),),
        num_steps=lambda num_images: 1,
        batch_size=1,
        stand_in="write_any_threshold",
    )
    return [Stage(name=THRESHOLD, unit="iterations", reads=(SCORES,), make=_make_threshold, cost=cost)]


def _labels(config: RunConfig) -> list[Stage]:
    own = config.labels
    if not own.is_tagged:
        return []
    return [
        Stage(
            name=LABELS,
            unit="images",
            reads=("images", SCORES, *((THRESHOLD,) if own.threshold is None else ())),
            settings=lambda: {
                "labels": own.model_dump(mode="json", exclude={*_OF_SCORES, "source", "corrections"}),
                "corrections": hash_of(own.corrections, config.resolve_vocabulary().classes),
            },
            operators=lambda run: _label_operators(config, run),
        )
    ]


DECLARATIONS = (
    Declaration(SCORES, "Score every class in every image (where `labels` come from CLIP).", _scores),
    Declaration(THRESHOLD, "Choose the score above which a class counts, from all of them.", _threshold),
    Declaration(LABELS, "Label the images by their scores, what is known of them, and corrections.", _labels),
)


def _score_operators(config: RunConfig, run: Run) -> list[Operator]:
    cluster, own = config.cluster, config.labels
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    arguments = {
        "spec": config.clip.spec(),
        "vocabulary": config.resolve_vocabulary(),
        "templates": own.templates,
        "method": own.method,
        "max_side_px": own.max_side_px,
        "stage": SCORES,
    }
    return [
        Operator(decode_shard, {"run": run, "stage": SCORES}, num_cpus=plan.helper_cpus),
        plan.operator(TagReplica, arguments),
        Operator(write_block, {"run": run, "stage": SCORES, "schema": TAG_SCORES}, num_cpus=plan.helper_cpus),
    ]


def _make_threshold(stage: Stage, run: Run) -> Receipt:
    (scores,) = receipts = upstream(run, stage.name, stage.reads)
    started = begin_stage(run, stage.name, stage.inputs(), receipts)
    if started.receipt:
        return started.receipt
    work: Any = ray.remote(find_threshold).options(num_cpus=1)
    found = ray.get(work.remote(run, tuple(scores.parts)))
    print(f"{stage.name}: {found:.3f}, of the scores of {scores.num_rows} images", flush=True)
    return finish_stage(run, started, parts=[THRESHOLD_FILE], num_rows=1, num_failures=0)


def find_threshold(run: Run, parts: tuple[str, ...]) -> float:
    """Finds the threshold of all scores and writes it; a task, whose node may be any.

    Args:
        run: the run folder.
        parts: of `tags/scores`.

    Raises:
        StageError: no image has scores.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        tables = list(pool.map(lambda part: run.read_part(SCORES, part, columns=["scores"]), parts))
    rows = [scores for table in tables for scores in table["scores"].to_pylist()]
    if not rows:
        raise StageError(f"stage {THRESHOLD}: no image has scores: there is nothing to choose a threshold by")
    found = dataset_threshold(np.asarray(rows, np.float32))
    run.folder.child(THRESHOLD).write(THRESHOLD_FILE, json.dumps({"threshold": found}).encode())
    return found


def _label_operators(config: RunConfig, run: Run) -> list[Operator]:
    vocabulary, corrections = config.resolve_vocabulary(), {}
    if config.labels.corrections is not None:
        corrections = read_corrections(config.labels.corrections, vocabulary.classes)
        known = {name for part in run.parts("images") for name in _ids(run, part)}
        if strange := sorted(corrections.keys() - known):
            raise InputError(f"labels.corrections: {config.labels.corrections}: the run has no image {strange[0]!r}")
    arguments = {"run": run, "vocabulary": vocabulary, "labels": config.labels, "corrections": corrections}
    return [Operator(label_shard, arguments, num_cpus=0.5)]


def _ids(run: Run, part: str) -> list[str]:
    return run.read_part("images", part, columns=["image_id"])["image_id"].to_pylist()


def label_shard(
    block: pa.Table, run: Run, vocabulary: Vocabulary, labels: LabelsSection, corrections: Corrections
) -> pa.Table:
    """A block that names one part in; the labels of its images written, its counts out.

    Args:
        block: of one row.
        run: the run folder.
        vocabulary: of the run.
        labels: of the run file.
        corrections: of `read_corrections`.
    """
    part = block["part"][0].as_py()
    threshold = labels.threshold
    if threshold is None:
        threshold = float(json.loads(run.folder.child(THRESHOLD).read(THRESHOLD_FILE))["threshold"])
    scores = {row["image_id"]: row["scores"] for row in run.read_part(SCORES, part).to_pylist()}
    images = run.read_part("images", part, columns=["image_id", "classes"]).to_pylist()
    # An image that could not be scored is told in failures/tags/scores; here it is left out.
    rows = [{**row, "scores": scores[row["image_id"]]} for row in images if row["image_id"] in scores]
    told = map_rows(
        start_rows(part, rows, _GIVEN_PAYLOAD),
        lambda row: labels_of(row, threshold, vocabulary.classes, labels, corrections.get(row["image_id"], {})),
        _TAGS_PAYLOAD,
        LABELS,
    )
    return write_block(told, run, LABELS, TAGS)


def labels_of(
    row: Mapping[str, Any],
    threshold: float,
    classes: Sequence[str],
    labels: LabelsSection,
    corrections: Mapping[str, bool],
) -> dict[str, Any]:
    """The labels of one image, and where each comes from.

    Args:
        row: with `classes` of the dataset and `scores`.
        threshold: of the scores.
        classes: of the vocabulary.
        labels: of the run file.
        corrections: what people say of this image.

    Returns:
        `classes` and `origin`.
    """
    given = [] if labels.known == "ignore" else list(row["classes"])
    origin = dict.fromkeys(given, "dataset")
    if not given or labels.known == "extend":
        is_tagged = tagged(np.asarray(row["scores"], np.float32), threshold, labels.at_least_one and not given)
        origin |= {name: "clip" for name, has in zip(classes, is_tagged, strict=True) if has and name not in origin}
    for name, is_there in corrections.items():
        if is_there:
            origin[name] = "correction"
        else:
            origin.pop(name, None)
    names = [name for name in classes if name in origin]
    return {"classes": names, "origin": [origin[name] for name in names]}
