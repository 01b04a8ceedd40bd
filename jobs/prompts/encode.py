"""Stage `features/...`: fixed views of every image through the frozen image tower, once, before prompts are learned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import map_rows, start_rows, write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.replicas.clip_features import FeatureReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_rgb
from fmwsss.core.schemas import features_bytes, features_schema, views_payload
from fmwsss.jobs.config.prompts import LearnSection
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, ShardCost, Stage
from fmwsss.jobs.images.decode import ENCODED_PAYLOAD
from fmwsss.jobs.prompts.views import view_of
from fmwsss.jobs.stages import StageError, upstream

if TYPE_CHECKING:
    from fmwsss.core.clip.frozen_clip import FrozenClip

Which = Literal["classification", "segmentation"]


def stage_of(config: RunConfig, which: Which) -> str:
    """The stage whose features one set of prompts reads: its own, or the first one's where they would be the same.

    Args:
        config: the run file.
        which: classification or segmentation.

    Returns:
        `features/classification` or `features/segmentation`.
    """
    first, own = config.learn.classification, getattr(config.learn, which)
    return f"features/{'classification' if _settings(own) == _settings(first) else which}"


def is_read(config: RunConfig, which: Which) -> bool:
    """Whether any seeds are made with this set of prompts: hand-made ones, and given maps, want none learned.

    Args:
        config: the run file.
        which: classification or segmentation.
    """
    return (config.seeds.coarse if which == "classification" else config.seeds.fine).needs_prompts


def stages(config: RunConfig) -> list[Stage]:
    """The features that the run file asks for; none where `cache` is not set."""
    chosen: dict[str, LearnSection] = {}
    for which in get_args(Which):
        section: LearnSection = getattr(config.learn, which)
        if section.cache and config.prompts is None and is_read(config, which):
            chosen.setdefault(stage_of(config, which), section)
    return [_features_stage(config, name, section) for name, section in chosen.items()]


DECLARATIONS = (
    Declaration(
        "features",
        "Cache CLIP features of fixed augmented views (where the run file sets `cache`).",
        stages,
        old_names=("encode",),
    ),
)


def _features_stage(config: RunConfig, name: str, section: LearnSection) -> Stage:
    return Stage(
        name=name,
        unit="images",
        reads=("images",),
        of_pixels=True,
        settings=lambda: {"clip": config.clip.model_dump(), "random_seed": config.random_seed, **_settings(section)},
        operators=lambda run: _operators(config, run, name, section),
        cost=ShardCost(FeatureReplica),
    )


def _operators(config: RunConfig, run: Run, stage: str, section: LearnSection) -> list[Operator]:
    """View | image tower | write.

    Raises:
        StageError: the cache would not fit on the disk.
    """
    (images,) = upstream(run, stage, ["images"])
    shapes = shapes_of(load_clip(config.clip.spec()), section)
    size_bytes = images.num_rows * section.cached_views * features_bytes(*shapes)
    what = " + ".join(f"{rows} x {columns}" for rows, columns in shapes)
    print(
        f"{stage}: {images.num_rows} images x {section.cached_views} views x {what} values in float16 "
        f"= {_in_words(size_bytes)}, into {run.folder.child(stage).url}",
        flush=True,
    )
    demand_space(run.folder, size_bytes, stage)
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    view_arguments = {
        "run": run,
        "stage": stage,
        "num_views": section.cached_views,
        "augment": section.augment.model_dump(),
        "random_seed": config.random_seed,
    }
    replica_arguments = {
        "spec": config.clip.spec(),
        "kind": section.cache,
        "num_views": section.cached_views,
        "crop_px": section.augment.crop_px,
        "precision": section.precision,
        "stage": stage,
    }
    write_arguments = {"run": run, "stage": stage, "schema": features_schema(section.cached_views)}
    return [
        Operator(view_shard, view_arguments, num_cpus=plan.helper_cpus),
        plan.operator(FeatureReplica, replica_arguments),
        Operator(write_block, write_arguments, num_cpus=plan.helper_cpus),
    ]


def view_shard(
    block: pa.Table, run: Run, stage: str, num_views: int, augment: dict[str, Any], random_seed: int
) -> pa.Table:
    """A block that names one part of `images/` in, the pixels of its views out.

    Args:
        block: of one row.
        run: the run folder.
        stage: for the failures table.
        num_views: of each image.
        augment: arguments of `draw_view`.
        random_seed: of the run.

    Returns:
        A row for each view.
    """
    part = block["part"][0].as_py()
    table = run.read_part("images", part, columns=["image_id", "image", "classes"])

    def draw(row: dict[str, Any]) -> dict[str, Any]:
        image = decode_rgb(row["image"], max_pixels=UNLIMITED)
        height_px, width_px = image.shape[:2]
        views = [
            view_of(row["image_id"], height_px, width_px, number, random_seed, augment) for number in range(num_views)
        ]
        pixels = {f"view_{number}": view.of_image(image).numpy().tobytes() for number, view in enumerate(views)}
        return {"height_px": height_px, "width_px": width_px, **pixels}

    return map_rows(start_rows(part, table.to_pylist(), ENCODED_PAYLOAD), draw, views_payload(num_views), stage)


def shapes_of(clip: FrozenClip, section: LearnSection) -> list[tuple[int, int]]:
    """Shapes of what is kept of one view: the input of the last block, or the embedding and the product F J.

    Args:
        clip: whose features are kept.
        section: of the run file.

    Returns:
        (tokens, width) of each array.
    """
    num_tokens = (-(-section.augment.crop_px // clip.patch_size)) ** 2
    if section.cache == "product":
        return [(1, clip.embed_dim), (num_tokens, clip.embed_dim)]
    return [(1 + num_tokens, clip.image_width)]


def _settings(section: LearnSection) -> dict[str, Any]:
    """What features depend on, beside the images and the CLIP."""
    return section.model_dump(mode="json", include={"cache", "cached_views", "augment", "precision"})


def demand_space(folder: Folder, size_bytes: int, stage: str) -> None:
    """Refuses a cache that the disk of a run has no room for.

    Args:
        folder: of the run.
        size_bytes: of the whole cache.
        stage: for the message.

    Raises:
        StageError: it says how much is needed, how much there is, and what to do.
    """
    if not folder.is_local:
        return  # an object store has no end that could be asked for
    place = Path(folder.url)
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if size_bytes > 0.95 * free_bytes:
        raise StageError(
            f"{stage} takes {_in_words(size_bytes)}, and {folder.url} has {_in_words(free_bytes)} left: lower "
            "cached_views, put the run elsewhere, or leave out `cache`"
        )


def _in_words(size_bytes: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            break
        size_bytes /= 1000  # type: ignore[assignment]
    return f"{size_bytes:.4g} {unit}"
