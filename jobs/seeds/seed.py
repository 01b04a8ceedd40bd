"""Stages `seeds/coarse` and `seeds/fine`: superpixels are classified by class maps and painted.

Maps come from CLIP as they are made; where the foreground is learned on the dataset, from the stage that keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import keep_images, map_rows, start_rows, write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.replicas.clip_maps import ClipReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import FOREGROUND_FILE, PROMPTS_FILE, Run
from fmwsss.core.images import encode_grey_png, encode_label_png
from fmwsss.core.schemas import MAPS, SEEDS, features_of, maps_from_bytes, superpixels_from_row
from fmwsss.core.seeds.corrections import PaintedRegion, with_corrections
from fmwsss.core.seeds.foreground import FoldModels
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.declarations import Declaration, Judged, ShardCost, Stage
from fmwsss.jobs.review.applied import applied, regions_of
from fmwsss.jobs.review.bring_in import PAINTED
from fmwsss.jobs.seeds.maps import PROMPTS_OF, map_operators
from fmwsss.jobs.seeds.methods import MAPS_COLUMN, make_seed

KEPT_PAYLOAD = [field for field in MAPS if field.name != "image_id"]
SEEDS_PAYLOAD = [field for field in SEEDS if field.name != "image_id"]


def seeds_stage(
    config: RunConfig,
    name: str,
    section: SeedSection,
    prompts: str,
    prompts_file: str = PROMPTS_FILE,
    png: bool | None = None,
    judged: tuple[Judged, ...] = (),
) -> Stage:
    """The stage that makes the seeds of one file of prompts: decode | CLIP | classify, paint, encode and write.

    Args:
        config: the run file.
        name: where the seeds go; of `seeds/fine` with a learned foreground the maps are in `maps/fine`, and so on.
        section: how they are made.
        prompts: the stage that learned the prompts.
        prompts_file: their file in it.
        png: whether to write PNGs too; None leaves it to the run file.
        judged: what of them the report compares with the ground truth.
    """
    with_png = config.seeds.png if png is None else png
    if section.foreground:
        read: tuple[str, ...] = tuple(f"{room}/{name.removeprefix('seeds/')}" for room in ("maps", "foreground"))
    else:
        read = (prompts,) if section.needs_prompts else ()
    return Stage(
        name=name,
        unit="images",
        reads=("images", *config.labels.read, "superpixels", *read),
        settings=lambda: {
            "clip": config.clip.model_dump(),
            "seeds": section.model_dump(mode="json"),
            "png": with_png,
            "confidence": config.seeds.confidence,
        },
        operators=lambda run: _operators(
            config, run, name, section, (run.folder.child(prompts), prompts_file), with_png
        ),
        cost=ShardCost(None if section.foreground else ClipReplica),
        judged=judged,
    )


def _coarse(config: RunConfig) -> list[Stage]:
    section = config.seeds.coarse
    judged = (*_maps(section, "", "coarse"), Judged("coarse", "seed"))
    return [seeds_stage(config, "seeds/coarse", section, PROMPTS_OF["coarse"], judged=judged)]


def _fine(config: RunConfig) -> list[Stage]:
    section = config.seeds.fine
    judged = (*_maps(section, " of fine", "fine"), Judged("fine", "seed"))
    return [seeds_stage(config, "seeds/fine", section, PROMPTS_OF["fine"], judged=judged)]


def _maps(section: SeedSection, of: str, name: str) -> tuple[Judged, ...]:
    """Class maps before and after the affinity, and the best that can be cut out of them; SAM has no part in them."""
    own = {"source": section.source.kind, "without": ("superpixels", f"foreground/{name}")}
    columns = {key: column for key, column in MAPS_COLUMN.items() if column != "refined_cam" or section.has_affinity}
    made = [Judged(f"{key}{of}", column, section.alpha, **own) for key, column in columns.items()]
    return (*made, Judged(f"maps of {name} cut best", "cut", maps=MAPS_COLUMN[section.maps], **own))


DECLARATIONS = (
    Declaration(
        "seeds/coarse",
        "Make the coarse seeds, from the classification prompts.",
        _coarse,
        old_names=("seed-coarse", "seed coarse"),
    ),
    Declaration(
        "seeds/fine",
        "Make the fine seeds, from the segmentation prompts.",
        _fine,
        old_names=("seed-fine", "seed fine"),
    ),
)


def _operators(
    config: RunConfig, run: Run, stage: str, section: SeedSection, prompts: tuple[Folder, str], png: bool
) -> list[Operator]:
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    write_arguments = {
        "run": run,
        "stage": stage,
        "vocabulary": config.resolve_vocabulary(),
        "section": section,
        "png": png,
        "confidence": config.seeds.confidence,
        "regions": regions_of(applied(run), config.resolve_vocabulary()) if stage == PAINTED else {},
    }
    if section.foreground:
        maps, foreground = (f"{room}/{stage.removeprefix('seeds/')}" for room in ("maps", "foreground"))
        models = run.folder.child(foreground)
        arguments = {**write_arguments, "maps": maps, "models": models}
        return [Operator(paint_shard, arguments, num_cpus=plan.helper_cpus)]
    return [
        *map_operators(config, run, plan, section, prompts, stage),
        Operator(write_shard, write_arguments, num_cpus=plan.helper_cpus),
    ]


def paint_shard(block: pa.Table, run: Run, maps: str, models: Folder, stage: str, **arguments: Any) -> pa.Table:
    """A block that names one part in; the seeds of the maps that were kept, with the foreground that was learned.

    Args:
        block: of one row.
        run: the run folder.
        maps: the stage that keeps the maps.
        models: the folder of the models of the foreground.
        stage: where the seeds go.
        arguments: of `write_shard`.
    """
    part = block["part"][0].as_py()
    # An image whose maps could not be made is told in failures of that stage; here it is left out.
    started = start_rows(part, run.read_part(maps, part).to_pylist(), KEPT_PAYLOAD)
    foreground = FoldModels.from_bytes(models.read(FOREGROUND_FILE))
    return write_shard(started, run, stage, foreground=foreground, **arguments)


def write_shard(
    block: pa.Table,
    run: Run,
    stage: str,
    vocabulary: Vocabulary,
    section: SeedSection,
    png: bool,
    confidence: bool,
    foreground: FoldModels | None = None,
    regions: Mapping[str, Sequence[PaintedRegion]] | None = None,
) -> pa.Table:
    """Writes the seeds of one shard, with its failures.

    Args:
        block: of rows with class maps.
        run: the run folder.
        stage: where the seeds go.
        vocabulary: of the run.
        section: of the seeds.
        png: write a PNG of each too.
        confidence: keep the confidence of each pixel.
        foreground: that was learned on the dataset; None leaves it to the maps.
        regions: what people painted, by image.

    Returns:
        One row of counts.
    """
    part = block["part"][0].as_py()
    images = {}
    if section.method == "crf":
        table = run.read_part("images", part, columns=["image_id", "image"])
        images = dict(zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True))
    table = run.read_part("superpixels", part)
    superpixels = {row["image_id"]: row for row in table.to_pylist()}
    # An image without superpixels is told in failures/superpixels; here it is left out.
    seeded = map_rows(
        keep_images(block, superpixels),
        lambda row: _seed_row(
            row,
            superpixels[row["image_id"]],
            images.get(row["image_id"]),
            vocabulary,
            section,
            confidence,
            foreground,
            (regions or {}).get(row["image_id"], ()),
        ),
        SEEDS_PAYLOAD,
        stage,
    )
    return write_block(seeded, run, stage, SEEDS, png_column="seed" if png else None)


def _seed_row(
    row: dict[str, Any],
    superpixels_row: dict[str, Any],
    image: bytes | None,
    vocabulary: Vocabulary,
    section: SeedSection,
    with_confidence: bool,
    foreground: FoldModels | None,
    regions: Sequence[PaintedRegion],
) -> dict[str, Any]:
    superpixels = superpixels_from_row(superpixels_row)
    indices = vocabulary.indices(row["classes"])
    maps = maps_from_bytes(row[MAPS_COLUMN[section.maps]], len(indices), row["grid_height"], row["grid_width"])
    decision = None
    if foreground is not None and row["margins"]:
        margins = np.asarray(row["margins"], np.float32)
        decision = foreground.decide(row["image_id"], features_of(row["features"], len(margins)), margins)
    seed = make_seed(section, superpixels, maps, indices, image, decision)
    if regions:
        seed = with_corrections(seed, superpixels, regions, indices)
    return {
        **{field.name: row[field.name] for field in SEEDS if field.name in row},
        "seed": encode_label_png(seed.labels),
        "superpixel_class": seed.superpixel_class,
        "scores": seed.scores.reshape(-1),
        "confidence": encode_grey_png(seed.confidence) if with_confidence else None,
        "mean_confidence": float(seed.confidence.mean(dtype=np.float64)),
        "coverage": float(seed.coverage),
        "missing": [vocabulary.classes[index - 1] for index in seed.missing],
    }
