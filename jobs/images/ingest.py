"""Stage `images`: every image of the dataset read, checked and stored with its labels, in shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import ray
from jaxtyping import UInt8
from PIL import Image

from fmwsss.cluster.execution.machine_faults import kind_of
from fmwsss.cluster.execution.rows import summary
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.execution.subprocess_decoder import decoder
from fmwsss.cluster.storage.folder import FileError, Folder, StorageError, read_url
from fmwsss.cluster.storage.ledger import Receipt, Run, part_index, part_name
from fmwsss.core.images import ImageError, encode_label_png
from fmwsss.core.labels import IGNORE
from fmwsss.core.schemas import IMAGES, failure_row
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.datasets import ImageLimits
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images.readers.base import SOURCES, DatasetError
from fmwsss.jobs.images.readers.registry import sources_of
from fmwsss.jobs.images.readers.toy import TOY_SCHEME
from fmwsss.jobs.stages import Declaration, ShardCost, Stage, begin_stage, make_stage, run_sharded

STAGE = "images"


def images_stage(config: RunConfig, home: str = "") -> Stage:
    """The stage that takes the images of the dataset into the run: read | check | write, one task a shard.

    Args:
        config: the run file.
        home: folder of the run in the run that the images go to, with a slash at its end; empty for the run itself.
    """
    return Stage(
        name=f"{home}{STAGE}",
        unit="images",
        reads=(),
        settings=lambda: {
            "dataset": config.dataset.model_dump(),
            "classes": list(config.resolve_vocabulary().classes),
            "shard_rows": config.shard_rows,
            "limits": config.limits.model_dump(),
        },
        make=lambda stage, run: _make(config, stage, run),
        cost=ShardCost(requests_per_image=2 if config.dataset.kind == "toy" else 4, requests_per_part=2),
    )


DECLARATIONS = (
    Declaration(
        STAGE,
        "Read the images and their labels, check them, write them as shards.",
        lambda config: [images_stage(config)],
        old_names=("ingest",),
    ),
)


def run(config: RunConfig, run: Run) -> Receipt:
    """Takes the images of the dataset into the run.

    Raises:
        ValueError: the dataset is empty or can't be read, it is not the one that the stage was begun with, or every
            image failed.
    """
    return make_stage(images_stage(config), run, config.max_failures)


def _make(config: RunConfig, stage: Stage, run: Run) -> Receipt:
    settings = stage.settings()
    own, _ = run.within(stage.name)
    complete = own.receipt(STAGE)
    is_same = complete is not None and all(complete.inputs.get(key) == value for key, value in settings.items())
    # The images are in the run; the dataset may have gone. Only a folder to be predicted is looked at again.
    if complete and is_same and config.dataset.kind != "unlabelled":
        return complete
    sources = _list_sources(config)
    # Which image is in which shard must not change between two starts.
    started = begin_stage(run, stage.name, {**settings, "listing": _listing_of(sources)}, [])
    if started.receipt:
        return started.receipt
    parts = [part_name(index) for index in range(-(-sources.num_rows // config.shard_rows))]
    arguments = {
        "run": own,
        "sources": ray.put(sources),
        "shard_rows": config.shard_rows,
        "vocabulary": config.resolve_vocabulary(),
        "limits": config.limits,
        "needs_labels": config.dataset.kind != "unlabelled",
    }
    return run_sharded(run, started, parts, sources.num_rows, [Operator(ingest_shard, arguments)], config.max_failures)


def demand_readable(config: RunConfig, run: Run, stage: bool | str = True) -> None:
    """Before failed images are read again: whether their parts' other images still can be.

    Args:
        config: the run file.
        run: the run folder.
        stage: the only stage whose failures are tried again, or True for all.

    Raises:
        ValueError: the dataset is not there, or no longer the one that was read.
    """
    failed = run.failed_parts(STAGE) if stage in (True, STAGE) else {}
    if not failed or run.receipt(STAGE) is None:
        return
    sources, complete = _list_sources(config), run.receipt(STAGE)
    if complete is not None and complete.inputs.get("listing") not in (None, _listing_of(sources)):
        raise DatasetError(
            "the dataset is no longer the one that was read: failed images can't be tried again in this run"
        )
    rows = sources.to_pylist()
    for part in sorted(failed):
        bad = set(run.failures(STAGE)["image_id"].to_pylist())
        first = part_index(part) * config.shard_rows
        for source in rows[first : first + config.shard_rows]:
            url = source["image_url"]
            if source["image_id"] in bad or url.startswith(TOY_SCHEME):
                continue
            parent, _, name = url.rpartition("/")
            if not Folder(parent).exists(name):
                raise DatasetError(f"{url} is no longer there: it is good in this run, and would be lost by a retry")


def _list_sources(config: RunConfig) -> pa.Table:
    return pa.Table.from_pylist([asdict(source) for source in sources_of(config.dataset)], schema=SOURCES)


def _listing_of(sources: pa.Table) -> str:
    return hashlib.sha256(json.dumps(sources.to_pylist()).encode()).hexdigest()[:16]


def ingest_shard(
    block: pa.Table,
    run: Run,
    sources: ray.ObjectRef,
    shard_rows: int,
    vocabulary: Vocabulary,
    limits: ImageLimits,
    needs_labels: bool,
) -> pa.Table:
    """A block that names one part in, that part and its failures written, its counts out."""
    part = block["part"][0].as_py()
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for source in ray.get(sources).slice(part_index(part) * shard_rows, shard_rows).to_pylist():
        try:
            rows.append(image_row(source, vocabulary, limits, needs_labels))
        except StorageError as error:
            # A file that is not there is a fault of this image; a store that does not answer is not.
            if not isinstance(error, FileError):
                raise
            failures.append(failure_row(source["image_id"], STAGE, error))
        except Exception as error:
            if kind_of(error) is not None:
                raise  # not this image's fault
            failures.append(failure_row(source["image_id"], STAGE, error))
    return summary(part, run.write_part(STAGE, part, rows, IMAGES, failures), len(failures))


def image_row(
    source: Mapping[str, Any], vocabulary: Vocabulary, limits: ImageLimits, needs_labels: bool = True
) -> dict[str, Any]:
    """The row of IMAGES for one row of SOURCES; without labels only where none are needed.

    Raises:
        ValueError: the image, its labels or its truth can't be used; one sentence.
    """
    if source["problem"]:
        raise DatasetError(source["problem"])
    if source["image_url"].startswith(TOY_SCHEME):
        data, truth, names = _toy(int(source["image_url"].removeprefix(TOY_SCHEME)))
    else:
        data = read_url(source["image_url"], limits.max_bytes)
        truth = decoder().labels(read_url(source["truth_url"], limits.max_bytes)) if source["truth_url"] else None
        names = source["classes"]
    height_px, width_px = decoder().size(data, limits.max_pixels)
    indices = _truth_indices(truth, (height_px, width_px), vocabulary) if truth is not None else []
    if names is None:
        if source["annotation_url"]:
            names = _annotated(read_url(source["annotation_url"], limits.max_bytes))
        else:
            names = [vocabulary.classes[index - 1] for index in indices]
    if needs_labels and not names:
        raise DatasetError("has no labels")
    return {
        "image_id": source["image_id"],
        "image": data,
        "height_px": height_px,
        "width_px": width_px,
        "classes": [vocabulary.classes[index - 1] for index in sorted(set(vocabulary.indices(names)))],
        "sha256": hashlib.sha256(data).hexdigest(),
        "truth": encode_label_png(truth) if truth is not None else None,
    }


def _toy(seed: int) -> tuple[bytes, UInt8[np.ndarray, "height width"], Sequence[str]]:
    from fmwsss.core.toy.world import draw_scene

    scene = draw_scene(seed)
    buffer = BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    return buffer.getvalue(), scene.truth, scene.classes


def _truth_indices(
    truth: UInt8[np.ndarray, "height width"], size: tuple[int, int], vocabulary: Vocabulary
) -> list[int]:
    if truth.shape != size:
        given = f"{truth.shape[1]} x {truth.shape[0]}"
        raise ImageError(f"its truth has {given} pixels, and the image, upright, {size[1]} x {size[0]}")
    indices = [int(value) for value in np.unique(truth) if value not in (0, IGNORE)]
    if indices and indices[-1] > len(vocabulary.classes):
        raise ImageError(f"its truth has the class {indices[-1]}; the vocabulary has {len(vocabulary.classes)} classes")
    return indices


def _annotated(data: bytes) -> list[str]:
    try:
        return [(node.text or "").strip() for node in ElementTree.fromstring(data).iterfind("object/name")]
    except ElementTree.ParseError as error:
        raise DatasetError("its annotation is no XML") from error
