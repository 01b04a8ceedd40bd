"""A trained segmenter over images: a data set of its own inside the run, or the images it was trained on.

<run>/predictions/<name>/ is a run in itself: images/, predicted/, and with refinement superpixels/ and refined/.
"""

from __future__ import annotations

from dataclasses import replace

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.replicas.segmenter import SegmenterReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.schemas import PREDICTIONS
from fmwsss.jobs.config.datasets import LabelledData, UnlabelledData
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, Judged, Stage
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.images.ingest import images_stage
from fmwsss.jobs.reports import reports
from fmwsss.jobs.run_layout import (
    PREDICTED,
    REFINED,
    VALIDATION,
    kept_folder,
    predictions_name,
    predictions_run,
    round_stage,
)
from fmwsss.jobs.segmenter import refine
from fmwsss.jobs.segmenter.trained import queries_setting, segmenter_spec
from fmwsss.jobs.stages import make_stage
from fmwsss.jobs.superpixels.propose import superpixels_stage


def predictions_stages(config: RunConfig, dataset: LabelledData | UnlabelledData, name: str) -> list[Stage]:
    """Images in, label maps out: the stages images | predicted | superpixels | refined | reports of a run in the run.

    Args:
        config: the run file; its dataset is not the one that is predicted.
        dataset: the images. Their labels, if they have any, are not looked at.
        name: of the folder in `predictions/`.

    Raises:
        StageError: the name is no name for a folder.
    """
    assert config.segmenter is not None
    home = f"{predictions_name(name)}/"
    own_config = config.model_copy(update={"dataset": dataset})
    predicted, refine_by = f"{home}{PREDICTED}", config.predict.refine
    trained = round_stage(config.segmenter.rounds)
    judged = Judged("predicted", "labels")
    stages = [
        replace(images_stage(own_config, home), cost=None),
        predicted_stage(config, predicted, f"{home}images", trained, restrict=False, judged=(judged,)),
    ]
    if refine_by == "sams":
        stages.append(superpixels_stage(own_config, home))
    if refine_by:
        judged = Judged("refined", "labels")
        stages.append(refine.refined_stage(config, f"{home}{REFINED}", predicted, home, refine_by, (judged,)))
    return [*stages, reports.predictions_stage(own_config, home)]


def _validation_stages(config: RunConfig) -> list[Stage]:
    """Those of the validation images that the run file names, if it does."""
    if config.segmenter is None or config.segmenter.validation is None:
        return []
    return predictions_stages(config, config.segmenter.validation, VALIDATION)


DECLARATIONS = (
    Declaration(
        predictions_name(VALIDATION),
        "Predict the validation images of the run file, and judge them if they have ground truth.",
        _validation_stages,
        old_names=("predict",),
    ),
)


def ingest_validation(config: RunConfig, run: Run) -> Run:
    """The validation images of the run file, taken into the run.

    Args:
        config: the run file.
        run: the run folder.

    Returns:
        The run in the run.
    """
    assert config.segmenter is not None
    assert config.segmenter.validation is not None
    images, *_ = predictions_stages(config, config.segmenter.validation, VALIDATION)
    make_stage(images, run, config.max_failures)
    return predictions_run(run, VALIDATION)


def predicted_stage(
    config: RunConfig, name: str, images: str, trained: str, restrict: bool, judged: tuple[Judged, ...] = ()
) -> Stage:
    """The stage that predicts images with a segmenter: decode | segmenter | encode and write.

    Args:
        config: the run file.
        name: where the predictions go.
        images: the stage of the images.
        trained: the stage that trained the segmenter.
        restrict: whether only the labels of an image are possible.
        judged: what of them the report compares with the ground truth.
    """
    assert config.segmenter is not None
    section, kept = config.predict, kept_folder(config.segmenter)
    settings = {"scales": section.scales, "flip": section.flip, "png": section.png, "restrict": restrict, "kept": kept}
    return Stage(
        name=name,
        unit="images",
        reads=(images, trained),
        settings=lambda: {**settings, **queries_setting(config)},
        operators=lambda run: _operators(config, *run.within(name), run.folder.child(trained).child(kept), restrict),
        cost=None,
        judged=judged,
    )


def _operators(config: RunConfig, run: Run, stage: str, model: Folder, restrict: bool) -> list[Operator]:
    section = config.predict
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    arguments = {
        "spec": segmenter_spec(config),
        "folder": model,
        "scales": tuple(section.scales),
        "flip": section.flip,
        "restrict": restrict,
        "stage": stage,
    }
    png_column = "labels" if section.png else None
    write_arguments = {"run": run, "stage": stage, "schema": PREDICTIONS, "png_column": png_column}
    return [
        Operator(decode_shard, {"run": run, "stage": stage}, num_cpus=plan.helper_cpus),
        plan.operator(SegmenterReplica, arguments),
        Operator(write_block, write_arguments, num_cpus=plan.helper_cpus),
    ]
