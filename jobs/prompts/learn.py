"""Stage `prompts/classification` and `prompts/segmentation`: a Ray Train job learns one set of prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fmwsss.cluster.execution.train_job import plan_training, train
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Receipt, Run
from fmwsss.cluster.telemetry.progress import StageProgress, watch_board
from fmwsss.jobs.config.prompts import LearnSection
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, Stage, StepCost
from fmwsss.jobs.prompts import joint, reuse
from fmwsss.jobs.prompts.batches import BatchSource
from fmwsss.jobs.prompts.encode import Which, is_read, shapes_of, stage_of
from fmwsss.jobs.prompts.joint import Renewal
from fmwsss.jobs.prompts.learn_job import LearnJob
from fmwsss.jobs.review.applied import applied, relabelled_of
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, upstream
from fmwsss.jobs.training import checkpoint
from fmwsss.jobs.training.sampling import batches_per_epoch, count_rows


def num_iterations_of(section: LearnSection, num_images: int) -> int:
    """How long one set of prompts is learned from so many images.

    Args:
        section: of the run file.
        num_images: of the dataset.

    Returns:
        Iterations.
    """
    return section.num_iterations(batches_per_epoch(num_images, section.batch_size))


def prompts_stage(config: RunConfig, which: Which) -> Stage:
    """The stage that learns one set of prompts, or takes them where the run file names `prompts`.

    Args:
        config: the run file.
        which: classification or segmentation.
    """
    name = f"prompts/{which}"
    if config.prompts is not None:
        return Stage(
            name=name,
            unit="iterations",
            reads=("images",),
            settings=lambda: reuse.settings(config, which),
            make=lambda stage, run: reuse.take(config, stage, run, which),
            cost=_cost(config, which),
        )
    section: LearnSection = getattr(config.learn, which)
    features = (stage_of(config, which),) if section.cache else ()
    seeds = ("seeds/coarse",) if which == "segmentation" else ()
    return Stage(
        name=name,
        unit="iterations",
        reads=("images", *config.labels.read, *features, *seeds),
        settings=lambda: {
            "clip": config.clip.model_dump(),
            "vocabulary": config.model_dump()["vocabulary"],
            "learn": section.model_dump(mode="json"),
            "joint_every": config.learn.joint_every,
            "random_seed": config.random_seed,
        },
        make=lambda stage, run: _make(config, stage, run, which),
        check=lambda num_images: _check_length(section, which, num_images),
        cost=_cost(config, which),
    )


def _cost(config: RunConfig, which: Which) -> StepCost:
    section: LearnSection = getattr(config.learn, which)
    every = config.learn.joint_every if which == "segmentation" else None
    return StepCost(
        step="learning_step_s",
        arguments=(config.clip.spec(), config.resolve_vocabulary(), section),
        num_steps=lambda num_images: num_iterations_of(section, num_images) if config.prompts is None else 0,
        batch_size=section.batch_size,
        stand_in="write_initial_prompts",
        renewed=("seeds/coarse", "seeds/joint", every) if every else None,
    )


DECLARATIONS = (
    Declaration(
        "prompts/classification",
        "Learn the classification prompts.",
        lambda config: [prompts_stage(config, "classification")] if is_read(config, "classification") else [],
        old_names=("learn-classification", "learn classification"),
    ),
    Declaration(
        "prompts/segmentation",
        "Learn the segmentation prompts, from the coarse seeds.",
        lambda config: [prompts_stage(config, "segmentation")] if is_read(config, "segmentation") else [],
        old_names=("learn-segmentation", "learn segmentation"),
    ),
)


def _check_length(section: LearnSection, which: Which, num_images: int) -> str:
    """How long a set of prompts will be learned, in words.

    Raises:
        ValueError: there is nothing but warm-up.
    """
    num_iterations = num_iterations_of(section, num_images)
    section.check_warmup(which, num_iterations)
    return f"{num_iterations} iterations of {section.batch_size} images"


def _make(config: RunConfig, stage: Stage, run: Run, which: Which) -> Receipt:
    """Learns one set of prompts from the run's images, and the segmentation prompts from the coarse seeds too.

    Raises:
        ValueError: the stages before it are not complete, or there is no image to learn from.
    """
    section: LearnSection = getattr(config.learn, which)
    feature_stage = stage_of(config, which) if section.cache else None
    receipts = upstream(run, stage.name, stage.reads)
    started = begin_stage(run, stage.name, stage.inputs(), receipts)
    if started.receipt:
        return started.receipt
    renewal = joint.renewal(config, run) if which == "segmentation" else None
    parts = tuple(receipts[0].parts)
    source = BatchSource(
        run=run,
        parts=parts,
        part_rows=count_rows(run, parts, list(stage.reads)),
        seed_stage="seeds/coarse" if which == "segmentation" else None,
        feature_stage=feature_stage,
        feature_shapes=tuple(shapes_of(load_clip(config.clip.spec()), section)) if feature_stage else (),
        num_views=section.cached_views,
        vocabulary=config.resolve_vocabulary(),
        batch_size=section.batch_size,
        augment=section.augment.model_dump(),
        random_seed=config.random_seed,
        labels=config.labels.stage,
        relabelled=relabelled_of(applied(run), config.resolve_vocabulary()),
    )
    if source.num_images == 0:
        raise StageError(
            f"stage {stage.name}: there is no image to learn from; the failures table tells what happened to them"
        )
    num_iterations = section.num_iterations(source.batches_per_epoch)
    section.check_warmup(which, num_iterations)
    plan = plan_training(config.cluster.train_workers, config.cluster.max_gpus)
    if source.rows_per_batch < plan.most_workers:
        raise StageError(
            f"cluster.train_workers is {plan.most_workers}, more than the {source.rows_per_batch} images of a batch"
        )
    job = LearnJob(
        run=run,
        stage=stage.name,
        clip=config.clip.spec(),
        source=source,
        section=section,
        num_iterations=num_iterations,
        stop=num_iterations,
        snapshot_every=config.learn.joint_every if which == "classification" else None,
        random_seed=config.random_seed,
        num_threads=config.cluster.num_threads,
        num_feeders=plan.num_feeders,
        checkpoint_every_s=config.cluster.checkpoint_every_s,
    )
    folder = run.folder.child(stage.name)
    for begin, stop in _rounds(folder, num_iterations, renewal):
        seed_stage = renewal.make(begin) if renewal else source.seed_stage
        part = replace(job, stop=stop, source=replace(source, seed_stage=seed_stage))
        progress = StageProgress(stage.name, num_iterations, "iterations", done=begin)
        with progress, watch_board(progress) as board:
            train(_train_loop, {"job": part, "board": board}, plan, scratch=folder.child("_ray_train"))
        if renewal and seed_stage:
            renewal.drop(seed_stage)
    folder.delete([checkpoint.CHECKPOINT_FILE])
    return finish_stage(run, started, parts=[PROMPTS_FILE], num_rows=source.num_images, num_failures=0)


def _rounds(folder: Folder, num_iterations: int, renewal: Renewal | None) -> list[tuple[int, int]]:
    """Pieces that learn from one set of seeds each, (first iteration, stop), from the one that is not finished on."""
    every = renewal.every if renewal else num_iterations
    done = checkpoint.next_iteration(folder)
    first = min(done, num_iterations - 1) // every * every
    return [(begin, min(begin + every, num_iterations)) for begin in range(first, num_iterations, every)]


def _train_loop(settings: dict[str, Any]) -> None:
    # torch and CLIP are for the workers alone: a driver starts without them.
    from fmwsss.jobs.prompts.train_loop import train_loop

    train_loop(settings)
