"""The trained segmenter of a run: its specification and its folder."""

from __future__ import annotations

from fmwsss.cluster.models.segmenters import SegmenterSpec
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.run_layout import kept_folder, round_stage
from fmwsss.jobs.stages import StageError, upstream


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
