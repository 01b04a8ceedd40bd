"""A trained segmenter over images: a data set of its own inside the run, or the images it was trained on.

<run>/predictions/<name>/ is a run in itself: images/, predicted/, and with refinement superpixels/ and refined/.
"""

from __future__ import annotations

import io
import re
import tarfile
from typing import Any

import ray

from cluster.ledger import Receipt, Run
from cluster.models import check
from cluster.resources import plan_replicas
from cluster.rows import write_block
from cluster.segmenters import SegmenterReplica, SegmenterSpec
from cluster.shards import Operator
from cluster.storage import Folder
from fmwsss_core.records import PREDICTIONS
from jobs import evaluate, ingest, propose, refine, seed
from jobs.config import FolderData, RunConfig, SegmenterSection, ToyData, UnlabelledData, VocData
from jobs.decode import decode_shard
from jobs.stage import StageError, begin_stage, run_sharded, upstream

PREDICTED, REFINED = "predicted", "refined"
VALIDATION = "validation"
VOC_ARCHIVE = "voc_results.tar.gz"
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"  # of the server: trained on more than its own masks
LAST, BEST = "last", "best"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
        the figures, as `jobs.evaluate.run_predictions` gives them.

    Raises:
        ValueError: there is no trained segmenter, the images can't be read, or all of them failed.
    """
    model, trained = trained_folder(config, run)
    if config.predict.cam_weight:  # not after SAM's hours
        check(config.clip.spec(), "clip")
        upstream(run, predictions_name(name), [seed.PROMPTS_OF["fine"]])
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


def round_stage(number: int) -> str:
    """The stage of one round of training."""
    return f"segmenter/round-{number}"


def segmenter_spec(config: RunConfig) -> SegmenterSpec:
    """The network of a run file."""
    assert config.segmenter is not None
    section, vocabulary = config.segmenter, config.resolve_vocabulary()
    return SegmenterSpec(
        network=section.network, class_names=("background", *vocabulary.classes), short_side_px=section.short_side_px,
        backbone=section.backbone, options=section.options, merge_queries=config.predict.merge_queries,
        resnet=section.resnet, weights=section.weights, weights_sha256=section.weights_sha256, factory=section.factory,
        clip=config.clip.spec(), random_seed=config.random_seed,
    )  # fmt: skip


def queries_setting(config: RunConfig) -> dict[str, str]:
    """`predict.merge_queries` among the settings of a stage that depends on it, where it is not the authors'."""
    merged = config.predict.merge_queries
    return {} if merged == "sum" else {"merge_queries": merged}


def trained_folder(config: RunConfig, run: Run, asker: str = "predictions") -> tuple[Folder, Receipt]:
    """The folder of the run's segmenter, after its last round, and the receipt of its training.

    Args:
        config: the run file.
        run: the run folder.
        asker: what needs it, for the error.

    Raises:
        StageError: none is asked for, or it is not trained yet.
    """
    if config.segmenter is None:
        raise StageError(f"the run file of {run.folder.url} has no section `segmenter`: it trains none")
    stage = round_stage(config.segmenter.rounds)
    (receipt,) = upstream(run, asker, [stage])
    return run.folder.child(stage).child(kept_folder(config.segmenter)), receipt


def kept_folder(section: SegmenterSection) -> str:
    """Which of a round's two segmenters is used: the last, unless the run file lets the validation images choose."""
    return BEST if section.keep == "best" else LAST


def predictions_name(name: str) -> str:
    """The folder, in a run, of what was predicted of one data set.

    Raises:
        StageError: the name is no name for a folder.
    """
    if not NAME.fullmatch(name):
        raise StageError(f"{name!r} is no name for a folder of predictions: letters, digits, `.`, `_` and `-`")
    return f"predictions/{name}"


def predictions_run(run: Run, name: str) -> Run:
    """The run in a run that holds one data set and what was predicted of it; raises as `predictions_name`."""
    return Run(run.folder.child(predictions_name(name)))


def pack_for_voc(run: Run) -> str:
    """All predictions of a run, refined if they are, as the archive that the server of PASCAL VOC takes; its URL.

    A task packs and writes it: no picture passes through the driver.
    """
    stage = REFINED if run.receipt(REFINED) else PREDICTED
    ray.get(_write_archive.options(num_cpus=0.5).remote(run, stage))
    return f"{run.folder.url}/{VOC_ARCHIVE}"


@ray.remote
def _write_archive(run: Run, stage: str) -> None:
    receipt = run.receipt(stage)
    assert receipt is not None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for part in receipt.parts:
            for row in run.folder.child(stage).read_table(part, columns=["image_id", "labels"]).to_pylist():
                entry = tarfile.TarInfo(f"{VOC_FOLDER}/{row['image_id']}.png")
                entry.size = len(row["labels"])
                archive.addfile(entry, io.BytesIO(row["labels"]))
    run.folder.write(VOC_ARCHIVE, buffer.getvalue())


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


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("predict")
