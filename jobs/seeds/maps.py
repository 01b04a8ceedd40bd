"""From images to the maps of their classes; stages `maps/coarse` and `maps/fine`, where the foreground is learned.

Without that, maps go straight into the stage of seeds. With it, all of a dataset's superpixels are to be seen before
the first of them is painted: then maps are kept, and beside them what CLIP says of each superpixel.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from fmwsss.cluster.execution.resources import ReplicaPlan, plan_replicas
from fmwsss.cluster.execution.rows import keep_images, map_rows, write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.replicas.clip_maps import ClipReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Run
from fmwsss.core.schemas import (
    MAPS,
    MAPS_PAYLOAD,
    features_to_bytes,
    looks_from_row,
    maps_from_bytes,
    superpixels_from_row,
)
from fmwsss.core.seeds.foreground import foreground_margins, pooled_tokens
from fmwsss.core.seeds.sams import superpixel_scores
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.class_maps import MixtureSource, given_sources, needs_clip
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.declarations import Declaration, ShardCost, Stage
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.review.applied import applied, relabelled_of
from fmwsss.jobs.seeds.given import add_given, given_shard
from fmwsss.jobs.seeds.methods import MAPS_COLUMN

PROMPTS_OF = {"coarse": "prompts/classification", "fine": "prompts/segmentation"}
# Only said when superpixels are painted: a change of them leaves the maps as they are.
_OF_PAINTING = {"method", "ignore_below", "keep_labelled", "uncovered"}
_POOLED_PAYLOAD = [field for field in MAPS if field.name != "image_id"]


def maps_stage(config: RunConfig, name: str, section: SeedSection, prompts: str) -> Stage:
    """The stage that keeps the maps of one set of seeds: decode | CLIP | pool and write.

    Args:
        config: the run file.
        name: where they go.
        section: how they are made.
        prompts: the stage that learned the prompts.
    """
    return Stage(
        name=name,
        unit="images",
        reads=("images", *config.labels.read, "superpixels", *([prompts] if section.needs_prompts else [])),
        settings=lambda: {
            "clip": config.clip.model_dump(),
            "seeds": section.model_dump(mode="json", exclude=_OF_PAINTING),
        },
        operators=lambda run: _operators(config, run, name, section, (run.folder.child(prompts), PROMPTS_FILE)),
        cost=ShardCost(ClipReplica),
    )


def _stages(config: RunConfig, which: str) -> list[Stage]:
    section: SeedSection = getattr(config.seeds, which)
    return [maps_stage(config, f"maps/{which}", section, PROMPTS_OF[which])] if section.foreground else []


DECLARATIONS = (
    Declaration(
        "maps/coarse",
        "Keep the class maps of the coarse seeds (where `seeds.coarse.foreground` is learned).",
        lambda config: _stages(config, "coarse"),
    ),
    Declaration(
        "maps/fine",
        "Keep the class maps of the fine seeds (where `seeds.fine.foreground` is learned).",
        lambda config: _stages(config, "fine"),
    ),
)


def _operators(
    config: RunConfig, run: Run, stage: str, section: SeedSection, prompts: tuple[Folder, str]
) -> list[Operator]:
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    arguments = {"run": run, "stage": stage, "vocabulary": config.resolve_vocabulary(), "section": section}
    return [
        *map_operators(config, run, plan, section, prompts, stage, with_looks=True),
        Operator(pool_shard, arguments, num_cpus=plan.helper_cpus),
    ]


def map_operators(
    config: RunConfig,
    run: Run,
    plan: ReplicaPlan,
    section: SeedSection,
    prompts: tuple[Folder, str],
    stage: str,
    with_looks: bool = False,
) -> list[Operator]:
    """The operators from the images of the run to the maps of their classes.

    Args:
        config: the run file.
        run: the run folder.
        plan: of the replicas.
        section: of the seeds.
        prompts: the folder and file of learned ones.
        stage: name of the stage, for the failures table.
        with_looks: tell what superpixels look like too, as `section.foreground` wants it.

    Returns:
        One operator where every map is given; else decoding, CLIP, and between them given maps of a mixture.
    """
    given = given_sources(section.source)
    vocabulary = config.resolve_vocabulary()
    own = {"sources": given, "vocabulary": vocabulary, "stage": stage}
    relabelled = relabelled_of(applied(run), vocabulary)
    if not needs_clip(section.source):
        parts = section.source.parts if isinstance(section.source, MixtureSource) else ()
        weights = [part.weight for part in parts] or [1.0]
        arguments = {"run": run, "weights": weights, "labels": config.labels.stage, "relabelled": relabelled, **own}
        return [Operator(given_shard, arguments, num_cpus=plan.helper_cpus)]
    arguments = {"run": run, "stage": stage, "labels": config.labels.stage, "relabelled": relabelled}
    return [
        Operator(decode_shard, arguments, num_cpus=plan.helper_cpus),
        *([Operator(add_given, own, num_cpus=plan.helper_cpus)] if given else []),
        clip_operator(config, plan, section, prompts, stage, with_looks),
    ]


def clip_operator(
    config: RunConfig,
    plan: ReplicaPlan,
    section: SeedSection,
    prompts: tuple[Folder, str],
    stage: str,
    with_looks: bool = False,
) -> Operator:
    """The operator that turns decoded images into maps of their classes, as one set of seeds wants them.

    Args:
        config: the run file.
        plan: of the replicas.
        section: of the seeds.
        prompts: the folder and file of learned ones.
        stage: name of the stage, for the failures table.
        with_looks: tell what superpixels look like too, as `section.foreground` wants it.
    """
    arguments = {
        "spec": config.clip.spec(),
        "vocabulary": config.resolve_vocabulary(),
        "prompts": prompts if section.prompts == "learned" else section.templates,
        "box_threshold": section.box_threshold,
        "num_sinkhorn": section.num_sinkhorn,
        "scales": section.scales,
        "num_attention_blocks": section.num_attention_blocks if section.has_affinity else 0,
        "box_on": section.box_on,
        "affinity_map": section.affinity_map,
        "stage": stage,
        "source": section.source.model_dump(),
        "flip": section.flip,
        "max_side_px": section.max_side_px,
        "looks": section.foreground if with_looks else None,
    }
    return plan.operator(ClipReplica, arguments)


def pool_shard(block: pa.Table, run: Run, stage: str, vocabulary: Vocabulary, section: SeedSection) -> pa.Table:
    """Writes the maps, pooled features and margins of one shard, with its failures.

    Args:
        block: of rows of LOOKS_PAYLOAD.
        run: the run folder.
        stage: where they go.
        vocabulary: of the run.
        section: of the seeds.

    Returns:
        One row of counts.
    """
    part = block["part"][0].as_py()
    superpixels = {row["image_id"]: row for row in run.read_part("superpixels", part).to_pylist()}
    # An image without superpixels is told in failures/superpixels; here it is left out.
    pooled = map_rows(
        keep_images(block, superpixels),
        lambda row: _pooled_row(row, superpixels[row["image_id"]], vocabulary, section),
        _POOLED_PAYLOAD,
        stage,
    )
    return write_block(pooled, run, stage, MAPS)


def _pooled_row(
    row: dict[str, Any], superpixels_row: dict[str, Any], vocabulary: Vocabulary, section: SeedSection
) -> dict[str, Any]:
    maps_row = {field.name: row[field.name] for field in MAPS_PAYLOAD}
    superpixels, indices = superpixels_from_row(superpixels_row), vocabulary.indices(row["classes"])
    if not indices or not len(superpixels):
        return {**maps_row, "margins": [], "features": b""}
    maps = maps_from_bytes(row[MAPS_COLUMN[section.maps]], len(indices), row["grid_height"], row["grid_width"])
    margins = foreground_margins(superpixel_scores(superpixels, maps, section.alpha))
    return {
        **maps_row,
        "margins": margins,
        "features": features_to_bytes(pooled_tokens(superpixels, looks_from_row(row))),
    }
