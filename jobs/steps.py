"""The steps of a run in their order, and running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmwsss.cluster.execution.session import session
from fmwsss.cluster.models.known_weights import Role
from fmwsss.cluster.storage.driver_lock import hold
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import INPUTS, ChangedInputs, Run
from fmwsss.cluster.storage.retry import forget
from fmwsss.cluster.telemetry.progress import running
from fmwsss.jobs import run_layout
from fmwsss.jobs.config.datasets import UnlabelledData
from fmwsss.jobs.config.pinned import adopt_weights, pin_models
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.exporters import voc
from fmwsss.jobs.images import ingest
from fmwsss.jobs.prompts import encode, joint, learn
from fmwsss.jobs.reports import evaluate
from fmwsss.jobs.reports import gallery as preview
from fmwsss.jobs.reports.table import print_table
from fmwsss.jobs.seeds import seed
from fmwsss.jobs.segmenter import predict, train
from fmwsss.jobs.stages import StageError, versions
from fmwsss.jobs.superpixels import propose

# Step -> (folder in the run, what it does). The order is the order of the run.
STEPS: dict[str, tuple[str, Callable[[RunConfig, Run], Any]]] = {
    "ingest": ("images", ingest.run),
    "propose": ("superpixels", propose.run),
    "encode": ("features", encode.run),
    "learn-classification": ("prompts/classification", lambda config, run: learn.run(config, run, "classification")),
    "seed-coarse": ("seeds/coarse", lambda config, run: seed.run(config, run, "coarse")),
    "learn-segmentation": ("prompts/segmentation", joint.learn_segmentation),
    "seed-fine": ("seeds/fine", lambda config, run: seed.run(config, run, "fine")),
    # These two do nothing unless the run file has a section `segmenter`.
    "train": ("segmenter", train.run),
    "predict": (run_layout.predictions_name(run_layout.VALIDATION), predict.run),
    "evaluate": ("reports", evaluate.run),
    "preview": ("reports", preview.run),
}

PREDICTED_STAGES = (propose.STAGE, run_layout.REFINED)  # those of them that depend on a model


def run(
    config: RunConfig, steps: list[str] | None = None, restart_from: str | None = None, retry: bool | str = False
) -> None:
    """Runs some steps, or all of them; what is complete is not done again.

    Args:
        config: the run file.
        steps: names among STEPS; None means all.
        restart_from: first a step whose outputs, and those of all steps after it, are deleted.
        retry: first forget the failures of all stages, or of the one named, so that those images are tried again.

    Raises:
        ValueError, RuntimeError: anything that a user can put right, in one line.
    """
    ledger = Run(Folder(config.run))
    ledger.folder.probe()
    pinned, models = pin_models(config)
    with hold(ledger.folder, running) as claim:
        ledger = Run(ledger.folder.guarded(claim))
        ledger.folder.sweep()
        if retry:
            ingest.demand_readable(config, ledger, retry)
            again = forget(ledger, retry if isinstance(retry, str) else None)
            print(f"tried again: {', '.join(f'{count} of {name}' for name, count in again.items()) or 'nothing'}")
        if restart_from is not None:
            names = list(STEPS)
            for name in reversed(names[names.index(restart_from) :]):
                ledger.reset(STEPS[name][0])
        settings = config.model_dump(mode="json", exclude={"cluster"})
        settings_of_run = {"config": settings, "models": models, "stages": _stages_of(config), "versions": versions()}
        adopt_weights(ledger, ledger.stages(), (ledger.manifest() or {}).get("models", {}), models)
        ledger.write_manifest(settings_of_run)
        chosen = list(STEPS) if steps is None else steps
        with session(config.cluster.address, config.cluster.num_cpus):
            results: dict[str, Any] = {}
            for name in (name for name in STEPS if name in chosen):
                results[name] = STEPS[name][1](pinned, ledger)
                if name == "ingest" and "learn-classification" in chosen:
                    # Now that the images are counted, and before SAM's hours.
                    learn.check_lengths(config, results[name].num_rows)
    if "evaluate" in results:
        print_table(results["evaluate"])
    if "preview" in results:
        print(f"report: {results['preview']}")


def _stages_of(config: RunConfig) -> list[str]:
    """The stages whose receipts say that this run is complete, in their order."""
    stages = list(dict.fromkeys(stage for stage, _ in STEPS.values()))
    # Steps of several stages, or of none.
    validation = STEPS["predict"][0]
    of_steps = {"features": encode.stages(config), "segmenter": [], validation: []}
    if config.segmenter is not None:
        of_steps["segmenter"] = train.stages(config.segmenter)
        if config.segmenter.validation is not None:
            of_steps[validation] = [f"{validation}/{run_layout.PREDICTED}"]
    return [own for stage in stages for own in of_steps.get(stage, [stage])]


def predict_new(config: RunConfig, images: str, truth: str | None, name: str, pack_voc: bool = False) -> str:
    """Predicts a folder of images with the run's segmenter; returns the folder of what was predicted, or its archive.

    Raises:
        ValueError: anything that a user can put right, in one line.
    """
    ledger = Run(Folder(config.run))
    dataset = UnlabelledData(kind="unlabelled", images=images, truth=truth, split=name)
    own = run_layout.predictions_run(ledger, name)
    own.folder.probe()
    needed: dict[Role, bool] = {"sam": config.predict.refine == "sams", "clip": config.predict.cam_weight > 0}
    config, models = pin_models(config, [role for role in needed if needed[role]])
    # Of the whole run: `run` writes predictions too.
    with hold(ledger.folder, running) as claim, session(config.cluster.address, config.cluster.num_cpus):
        ledger = Run(ledger.folder.guarded(claim))
        own = run_layout.predictions_run(ledger, name)
        begun = [stage for stage in PREDICTED_STAGES if own.folder.child(stage).exists(INPUTS)]
        adopt_weights(own, begun, (ledger.manifest() or {}).get("models", {}), models)
        try:
            metrics = predict.predict_dataset(config, ledger, dataset, name)
        except ChangedInputs as error:
            raise StageError(f"{error.found}; give these predictions another --name") from None
        archive = voc.pack_for_voc(own) if pack_voc else None
    if metrics["truth"]:
        print_table(metrics)
    return archive or own.folder.url
