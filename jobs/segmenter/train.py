"""Stage `segmenter`: a segmenter is trained on the seeds, in rounds if asked: train, refine its labels, train again."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from typing import Any, Literal

from fmwsss.cluster.execution.train_job import plan_training, train
from fmwsss.cluster.models.segmenters import new_segmenter
from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.cluster.telemetry.progress import StageProgress, watch_board
from fmwsss.core.segmenter.crop_settings import CropSettings
from fmwsss.jobs import run_layout
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.segmenter import SegmenterSection
from fmwsss.jobs.declarations import Declaration, Judged, Stage, StepCost
from fmwsss.jobs.review.applied import applied, rejected_of
from fmwsss.jobs.run_layout import LAST, round_stage
from fmwsss.jobs.segmenter import predict, refine
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.segmenter.trained import queries_setting, segmenter_spec
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, upstream
from fmwsss.jobs.training.sampling import count_rows

CLIP_BACKBONE = 2  # which design of `fmwsss.core.segmenter.clip_backbone`: weights of an earlier one do not fit


def stages(config: RunConfig) -> list[Stage]:
    """A stage for each round of training, and the labels that are made between two of them; none without `segmenter`.

    Between two rounds the segmenter predicts its own images, of each only its own classes, and superpixels refine them.
    """
    section = config.segmenter
    if section is None:
        return []
    found = [_round_stage(config, section, 1)]
    method = config.predict.refine or "sams"
    for number in range(1, section.rounds):
        trained = round_stage(number)
        predicted, refined = (f"{trained}/{name}" for name in (run_layout.PREDICTED, run_layout.REFINED))
        judged = (Judged(f"seeds of round {number + 1}", "labels"),)
        found += [
            predict.predicted_stage(config, predicted, "images", trained, restrict=True),
            refine.refined_stage(config, refined, predicted, "", method, judged),
            _round_stage(config, section, number + 1),
        ]
    return found


DECLARATIONS = (
    Declaration(
        "segmenter", "Train the segmenter of the run file on the seeds, in rounds.", stages, old_names=("train",)
    ),
)


def _round_stage(config: RunConfig, section: SegmenterSection, number: int) -> Stage:
    """One round of training.

    Its `make` raises ValueError where the seeds are not complete, the network cannot be made as asked, or there is
    nothing to learn from.
    """
    return Stage(
        name=round_stage(number),
        unit="iterations",
        reads=("images", labels_of_round(number)[0]),
        settings=lambda: training_inputs(config, choose_engine(section)),
        make=lambda stage, run: _train_round(config, stage, run, section, number),
        cost=StepCost(
            step="training_step_s",
            arguments=(segmenter_spec(config), section),
            num_steps=lambda _: section.iterations,
            batch_size=section.batch_size,
        ),
    )


def labels_of_round(number: int) -> tuple[str, str]:
    """Stage and column of the labels that a round is trained on: the fine seeds, then the refined predictions."""
    return ("seeds/fine", "seed") if number == 1 else (f"{round_stage(number - 1)}/refined", "labels")


def choose_engine(section: SegmenterSection) -> Literal["ray", "detectron2"]:
    """The engine that the run file names, or else detectron2 where it is installed; a choice of ours is said.

    Raises:
        StageError: the one that is named is not installed.
    """
    is_there = importlib.util.find_spec("detectron2") is not None
    if section.engine == "detectron2" and not is_there:
        raise StageError("segmenter.engine is detectron2, which is not installed here: install it, or take engine: ray")
    if section.engine:
        return section.engine
    if is_there and section.micro_batches == 1:
        return "detectron2"
    reason = "detectron2's trainer takes no micro_batches" if is_there else "detectron2 is not installed"
    print(f"segmenter: {reason}; training with Ray Train (engine: ray)", flush=True)
    return "ray"


def training_inputs(config: RunConfig, engine: str) -> dict[str, Any]:
    """What of a run file a training depends on: settings that only watch it may change while it is stopped.

    Args:
        config: the run file.
        engine: `ray` or `detectron2`.

    Returns:
        A part of the stage's identity.
    """
    assert config.segmenter is not None
    section = config.segmenter
    only_watched = {"preview_every", "rounds", "keep", "micro_batches"}
    if section.keep == "last":
        only_watched |= {"validation", "validate_every"}
    return {
        "segmenter": {**section.model_dump(mode="json", exclude=only_watched), "engine": engine},
        "classes": list(config.resolve_vocabulary().classes),
        "random_seed": config.random_seed,
        **({"clip_backbone": CLIP_BACKBONE} if section.backbone.get("model_type") == "clip" else {}),
        **(queries_setting(config) if section.keep == "best" else {}),  # a say in which weights are best
    }


def _train_round(config: RunConfig, stage: Stage, run: Run, section: SegmenterSection, number: int) -> Receipt:
    from fmwsss.jobs.segmenter.crops import CropSource

    labels = labels_of_round(number)
    images, seeds = upstream(run, stage.name, stage.reads)
    settings, plan = stage.inputs(), plan_training(config.cluster.train_workers, config.cluster.max_gpus)
    started = begin_stage(run, stage.name, settings, [images, seeds])
    if started.receipt:
        return started.receipt
    if seeds.num_rows < 1:
        raise StageError(f"stage {stage.name}: there is no seed to learn from")
    if section.confidence_weights and not config.seeds.confidence:
        raise StageError(
            "segmenter.confidence_weights needs the confidences of the seeds: set seeds.confidence to true"
        )
    if min(section.batch_size, seeds.num_rows) < plan.most_workers:
        raise StageError(f"cluster.train_workers is {plan.most_workers}, more than the images of a batch")
    spec = segmenter_spec(config)
    new_segmenter(spec)  # a setting that is wrong should be told before workers start
    crop_settings = CropSettings(**{field.name: getattr(section, field.name) for field in fields(CropSettings)})
    parts, rejected = tuple(images.parts), rejected_of(applied(run))
    source = CropSource(
        run=run,
        parts=parts,
        part_rows=count_rows(run, parts, ["images", labels[0]], rejected),
        labels=labels,
        weighted=section.confidence_weights,
        batch_size=section.batch_size,
        settings=crop_settings,
        random_seed=config.random_seed,
        rejected=rejected,
    )
    job = TrainJob(
        run=run,
        stage=stage.name,
        spec=spec,
        source=source,
        section=section,
        num_iterations=section.iterations,
        num_feeders=plan.num_feeders,
        random_seed=config.random_seed,
        num_threads=config.cluster.num_threads,
        checkpoint_every_s=config.cluster.checkpoint_every_s,
        validation=predict.ingest_validation(config, run) if section.validate_every else None,
        precision=section.precision or ("bfloat16" if plan.use_gpu else "float32"),
    )  # fmt: skip
    loop = _detectron2_loop if settings["segmenter"]["engine"] == "detectron2" else _ray_loop
    with StageProgress(stage.name, section.iterations, "iterations") as progress, watch_board(progress) as board:
        train(loop, {"job": job, "board": board}, plan, scratch=run.folder.child(f"{stage.name}/_ray_train"))
    folder = run.folder.child(stage.name)
    folder.delete([name for name in folder.list("_checkpoint")])
    return finish_stage(run, started, parts=[LAST], num_rows=seeds.num_rows, num_failures=0)


def _ray_loop(settings: dict[str, Any]) -> None:
    # torch is for the workers alone: a driver starts without it.
    from fmwsss.jobs.segmenter.train_loop import train_loop

    train_loop(settings)


def _detectron2_loop(settings: dict[str, Any]) -> None:
    from fmwsss.jobs.segmenter.detectron2_engine import train_loop

    train_loop(settings)
