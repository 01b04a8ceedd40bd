"""A trained segmenter over images: a data set of its own inside the run, or the images it was trained on.

<run>/predictions/<name>/ is a run in itself: images/, predicted/, and with refinement superpixels/ and refined/.
"""

from __future__ import annotations

from typing import Any

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.models.loaders import check
from fmwsss.cluster.models.segmenters import SegmenterSpec
from fmwsss.cluster.replicas.segmenter import SegmenterReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.core.schemas import PREDICTIONS
from fmwsss.jobs import run_layout
from fmwsss.jobs.config.datasets import FolderData, ToyData, UnlabelledData, VocData
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images import ingest
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.reports import evaluate
from fmwsss.jobs.run_layout import PREDICTED, REFINED, VALIDATION, predictions_name, predictions_run
from fmwsss.jobs.segmenter import refine
from fmwsss.jobs.segmenter.trained import queries_setting, segmenter_spec, trained_folder
from fmwsss.jobs.stages import begin_stage, run_sharded, upstream
from fmwsss.jobs.superpixels import propose


def run(config: RunConfig, run: Run) -> dict[str, Any] | None:
    """Predicts the validation images that the run file names, if it does, and judges them if they have truth."""
    if config.segmenter is None or config.segmenter.validation is None:
        return None
    return predict_dataset(config, run, config.segmenter.validation, VALIDATION)


def predict_dataset(
    config: RunConfig, run: Run, dataset: ToyData | VocData | FolderData | UnlabelledData, name: str
) -> dict[str, Any]:
    """Images in, label maps out: ingest | predict | propose | refine | judge; what is complete is not done again.

    Args:
        config: the run file; its dataset is not the one that is predicted.
        run: whose segmenter it is.
        dataset: the images. Their labels, if they have any, are not looked at.
        name: of the folder in `predictions/`.

    Returns:
        the figures, as `fmwsss.jobs.reports.evaluate.run_predictions` gives them.

    Raises:
        ValueError: there is no trained segmenter, the images can't be read, or all of them failed.
    """
    model, trained = trained_folder(config, run)
    if config.predict.cam_weight:  # not after SAM's hours
        check(config.clip.spec(), "clip")
        upstream(run, predictions_name(name), [run_layout.PROMPTS_OF["fine"]])
    spec = segmenter_spec(config)
    own = predictions_run(run, name)
    own_config = config.model_copy(update={"dataset": dataset})
    ingest.run(own_config, own)
    predict_images(config, own, spec, model, trained, PREDICTED, restrict=False)
    if config.predict.refine == "sams":
        propose.run(own_config, own)
    if config.predict.refine:
        refine.refine_images(config, own, run, PREDICTED, REFINED, config.predict.refine)
    return evaluate.run_predictions(own_config, own)


def ingest_validation(config: RunConfig, run: Run) -> Run:
    """The validation images of the run file, taken into the run."""
    assert config.segmenter is not None
    assert config.segmenter.validation is not None
    own = predictions_run(run, VALIDATION)
    ingest.run(config.model_copy(update={"dataset": config.segmenter.validation}), own)
    return own


def predict_images(
    config: RunConfig, run: Run, spec: SegmenterSpec, model: Folder, trained: Receipt, stage: str, restrict: bool
) -> Receipt:
    """Predicts the images of a run with the segmenter in a folder: decode | segmenter | encode and write.

    Args:
        config: the run file.
        run: whose `images/` are predicted.
        spec: of the segmenter.
        model: its folder.
        trained: receipt of its training.
        stage: where the predictions go.
        restrict: whether only the labels of an image are possible.

    Raises:
        ValueError: the images are not there, or every image failed.
    """
    (images,) = upstream(run, stage, ["images"])
    section = config.predict
    kept = model.url.rpartition("/")[2]
    settings = {"scales": section.scales, "flip": section.flip, "png": section.png, "restrict": restrict, "kept": kept}
    settings |= queries_setting(config)
    started = begin_stage(run, stage, settings, [images, trained])
    if started.receipt:
        return started.receipt
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    arguments = {
        "spec": spec,
        "folder": model,
        "scales": tuple(section.scales),
        "flip": section.flip,
        "restrict": restrict,
        "stage": stage,
    }
    png_column = "labels" if section.png else None
    write_arguments = {"run": run, "stage": stage, "schema": PREDICTIONS, "png_column": png_column}
    operators = [
        Operator(decode_shard, {"run": run, "stage": stage}, num_cpus=plan.helper_cpus),
        plan.operator(SegmenterReplica, arguments),
        Operator(write_block, write_arguments, num_cpus=plan.helper_cpus),
    ]
    return run_sharded(run, started, images.parts, images.num_rows, operators, config.max_failures)
