"""The stages of a run in their order, and making them."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fmwsss.cluster.execution.meter import Meter
from fmwsss.cluster.execution.session import session
from fmwsss.cluster.execution.shared_paths import demand_shared
from fmwsss.cluster.models.extras import demand_package
from fmwsss.cluster.models.known_weights import Role
from fmwsss.cluster.storage.driver_lock import hold
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import INPUTS, ChangedInputs, Receipt, Run
from fmwsss.cluster.storage.retry import forget
from fmwsss.cluster.storage.spending import Budget, Prices
from fmwsss.cluster.storage.storage_errors import DamagedFile
from fmwsss.cluster.telemetry.progress import Course, on_course, running, waited_for
from fmwsss.cluster.telemetry.trackers import MlflowTracker, Tracker, WandbTracker, followed_by, tell_trackers
from fmwsss.jobs import run_layout
from fmwsss.jobs.config.datasets import UnlabelledData
from fmwsss.jobs.config.pinned import Models, adopt_weights, pin_models, pin_segmenter
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, Stage
from fmwsss.jobs.exporters import voc
from fmwsss.jobs.images import ingest, kept_superpixels
from fmwsss.jobs.notify import told_at_end
from fmwsss.jobs.prompts import encode, learn
from fmwsss.jobs.reports import reports
from fmwsss.jobs.reports.table import print_table
from fmwsss.jobs.review.bring_in import bring_in
from fmwsss.jobs.seeds import foreground, maps, seed
from fmwsss.jobs.segmenter import predict, train
from fmwsss.jobs.segmenter.trained import trained_folder
from fmwsss.jobs.stages import StageError, demand_unchanged, make_stage, receipt_of, upstream, versions
from fmwsss.jobs.superpixels import propose
from fmwsss.jobs.tags import tag

# A module with stages is named here, and nowhere else. What a stage reads decides about the order of a run.
MODULES = (ingest, propose, tag, encode, learn, maps, foreground, seed, train, predict, reports)
# Of the machine or the person that starts a run, and not of the run.
NOT_KEPT = {"cluster", "tracking", "notify"}
DECLARED: tuple[Declaration, ...] = tuple(own for module in MODULES for own in module.DECLARATIONS)


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages that a run file asks for, each after those that it reads, and reports last."""
    asked = {stage.name: stage for own in DECLARED for stage in own.stages(config)}
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for name in stage.reads:
            if name in asked:
                visit(asked[name])
        ordered.setdefault(stage.name, stage)

    for stage in sorted(asked.values(), key=lambda stage: stage.unit is None and not stage.name.count("/")):
        visit(stage)
    return list(ordered.values())


def current_name(word: str) -> str:
    """The name of a stage, for what it was called once; then a line on stderr tells the new name."""
    for own in DECLARED:
        if word in own.old_names:
            print(f"fmwsss: {word} is called {own.name} now", file=sys.stderr)
            return own.name
    return word


def choose(stages: Sequence[Stage], name: str) -> list[Stage]:
    """Those stages that a name means: the one of that name, and those in the folder of that name.

    Args:
        stages: of a run.
        name: of a stage or a folder, as it is called now.

    Returns:
        the stages; none where there are such, but the run file asks for none.

    Raises:
        StageError: there is no such stage; the line tells which there are.
    """
    found = [stage for stage in stages if f"{stage.name}/".startswith(f"{name}/")]
    if found or any(f"{own.name}/".startswith(f"{name}/") for own in DECLARED):
        return found
    names = [stage.name for stage in stages]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    raise StageError(f"there is no stage {name}{hint} the stages of this run file are {', '.join(names)}")


def dependants(stages: Sequence[Stage], chosen: Sequence[Stage]) -> list[Stage]:
    """Some stages and all that depend on them, in the order of a run.

    Args:
        stages: of a run, in their order.
        chosen: some of them.
    """
    names = {stage.name for stage in chosen}
    for stage in stages:
        if names & set(stage.reads):
            names.add(stage.name)
    return [stage for stage in stages if stage.name in names]


def run(
    config: RunConfig,
    only: Sequence[str] | None = None,
    restart_from: str | None = None,
    retry: bool | str = False,
    relearn: bool = False,
    as_it_was: bool = False,
) -> None:
    """Makes some stages, or all of them; what is complete is not made again.

    Args:
        config: the run file.
        only: names of stages, or of folders of them; None means all.
        restart_from: first a stage, or a folder of them, whose outputs, and those of all stages that depend on it, are
            deleted.
        retry: first forget the failures of all stages, or of the one named, so that those images are tried again.
        relearn: learn prompts anew where images or labels have changed, however few.
        as_it_was: do not look whether the dataset has changed.

    Raises:
        FmwsssError: anything that a user can put right, in one line.
    """
    with told_at_end(config.notify, config.run):
        _run(config, only, restart_from, retry, relearn, as_it_was)


def _run(
    config: RunConfig,
    only: Sequence[str] | None,
    restart_from: str | None,
    retry: bool | str,
    relearn: bool,
    as_it_was: bool,
) -> None:
    asked = stages_of(config)
    due = asked if only is None else _due(asked, only)
    anew: list[Stage] = []
    if restart_from is not None:
        anew = dependants(asked, choose(asked, current_name(restart_from)))
        if not anew:
            raise StageError(f"this run file asks for no stage {restart_from}: there is nothing to start again from")
    due_names = {stage.name for stage in due}
    ledger = Run(Folder(config.run))
    ledger.folder.probe()
    print("clip, sam: looking into the weights", flush=True)
    with waited_for("clip, sam: looking into the weights"):
        pinned, models = pin_models(config)
        pinned = pin_segmenter(pinned, models)
    stages = stages_of(pinned)
    with hold(ledger.folder, running) as claim:
        ledger = Run(ledger.folder.guarded(claim))
        ledger.folder.sweep()
        _adopt_weights(ledger, stages, models)
        again = {stage.name for stage in anew}
        for stage in stages:
            if stage.name in due_names & again:
                stage.inputs()  # what can't be read is told before anything is deleted
        demand_unchanged([stage for stage in stages if stage.name in due_names - again], ledger)
        if retry:
            ingest.demand_readable(config, ledger, retry)
            forgotten = forget(ledger, retry if isinstance(retry, str) else None)
            print(f"tried again: {', '.join(f'{count} of {name}' for name, count in forgotten.items()) or 'nothing'}")
        _reset(config, ledger, anew)
        settings = config.model_dump(mode="json", exclude=NOT_KEPT)
        told = {"stages": [stage.name for stage in stages], "units": {stage.name: stage.unit for stage in stages}}
        ledger.write_manifest({"config": settings, "models": models, **told, "versions": versions()})
        where = config.cluster.address or os.environ.get("RAY_ADDRESS")
        meter = Meter(ledger.folder, prices_of(config), budget_of(config))
        meter.demand()
        waiting = f"waiting for Ray at {where}" if where else "starting Ray on this machine"
        print(waiting, flush=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(followed_by(trackers_of(config, ledger.folder.url, settings)))
            with waited_for(waiting):
                stack.enter_context(session(config.cluster.address, config.cluster.num_cpus))
            stack.enter_context(meter.counting())
            demand_shared(local_paths(config))
            chosen = [stage for stage in stages if stage.name in due_names]
            results = _make_all(config, ledger, chosen, stages, meter, relearn, as_it_was)
    report = results.get(reports.STAGE)
    if report:
        print_table(report.metrics)
        print(f"seeds: {ledger.folder.url}/seeds/fine")
        print(f"report: {report.page}")


def trackers_of(config: RunConfig, run_url: str, settings: Mapping[str, Any]) -> list[Callable[[], Tracker]]:
    """What makes each tracker of a run file.

    Args:
        config: the run file.
        run_url: of the run folder.
        settings: as they stand in the manifest.
    """
    own, made = config.tracking, list[Callable[[], Tracker]]()
    if own.mlflow:
        demand_package("mlflow", "mlflow", "tracking.mlflow")
        made.append(partial(MlflowTracker, own.mlflow, own.experiment, run_url, settings))
    if own.wandb:
        demand_package("wandb", "wandb", "tracking.wandb")
        made.append(partial(WandbTracker, own.wandb, run_url, settings))
    return made


def local_paths(config: RunConfig) -> dict[str, str]:
    """What workers open of a run file by a path of this machine, by its key; what is not there is told elsewhere."""
    data = config.dataset
    named = {
        "run": config.run,
        **{f"dataset.{key}": getattr(data, key, None) for key in ("images", "root", "truth")},
        "clip.weights": config.clip.weights,
        "sam.weights": config.sam.weights,
        "proposals": config.proposals,
    }
    paths = {
        key: os.path.abspath(os.path.expanduser(path)) for key, path in named.items() if path and "://" not in path
    }
    return {key: path for key, path in paths.items() if os.path.exists(path)}


def prices_of(config: RunConfig) -> Prices:
    """The prices of a run file."""
    return Prices(config.prices.currency, config.prices.gpu_hour, config.prices.machine_hour)


def budget_of(config: RunConfig) -> Budget:
    """What a run may spend."""
    return Budget(config.max_gpu_hours, config.max_cost)


def _due(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """Those stages that are named, in their order; one that the run file does not ask for is skipped, and told."""
    due: set[str] = set()
    for name in map(current_name, names):
        found = choose(stages, name)
        due |= {stage.name for stage in found}
        if not found:
            print(f"{name}: this run file asks for none", flush=True)
    return [stage for stage in stages if stage.name in due]


def _make_all(
    config: RunConfig,
    run: Run,
    due: Sequence[Stage],
    stages: Sequence[Stage],
    meter: Meter,
    relearn: bool = False,
    as_it_was: bool = False,
) -> dict[str, Any]:
    """Makes the stages that are due, in their order; what each returned, by name."""
    for stage in due:
        if stage.refresh and not as_it_was:
            stage.refresh(stage, run, stages, relearn)
    names = [stage.name for stage in due]
    bring_in(run, stages, names, relearn)
    for stage in due:  # nothing is paid for before what cannot end well is told
        upstream(run, stage.name, [name for name in stage.reads if name not in names])
    results: dict[str, Any] = {}
    with on_course(Course(names, {stage.name: 0.0 for stage in due if stage.unit is None})) as course:
        for stage in due:
            _make_one(config, run, stage, due, stages, meter, course, results)
    if report := results.get(reports.STAGE):
        rows = {row["name"]: row.get("miou") for row in report.metrics["rows"]}
        tell_trackers("miou", 0, {name.replace(": ", "/"): value for name, value in rows.items() if value is not None})
    return results


def _make_one(
    config: RunConfig,
    run: Run,
    stage: Stage,
    due: Sequence[Stage],
    stages: Sequence[Stage],
    meter: Meter,
    course: Course,
    results: dict[str, Any],
) -> None:
    """Makes one of the stages that are due, and puts what it returned into `results`."""
    meter.demand()
    course.begin(stage.name)
    if receipt := receipt_of(run, stage.name):
        print(f"{stage.name}: complete, {receipt.num_rows} {stage.unit}", flush=True)
    result = results[stage.name] = make_stage(stage, run, config.max_failures, stages)
    if isinstance(result, Receipt):
        course.learn(stage.name, result.seconds)
        rows = {stage.unit: result.num_rows, "failures": result.num_failures, "seconds": result.seconds}
        tell_trackers(f"stages/{stage.name}", 0, {str(name): value for name, value in rows.items()})
    if stage.name == ingest.STAGE:
        for other in due:
            if other.check:
                other.check(results[stage.name].num_rows)
    if stage.name.rpartition("/")[2] == propose.STAGE:
        kept_superpixels.forget(run.within(stage.name)[0])


def _adopt_weights(run: Run, stages: Sequence[Stage], models: Models) -> None:
    begun = [stage.name for stage in stages if run.folder.child(stage.name).exists(INPUTS)]
    try:
        recorded = (run.manifest() or {}).get("models", {})
    except DamagedFile as error:
        print(f"fmwsss: {str(error).partition(';')[0]}; it is written again", file=sys.stderr)
        recorded = {}
    adopt_weights(run, begun, recorded, models)


def _reset(config: RunConfig, run: Run, stages: Sequence[Stage]) -> None:
    """Deletes what stages made, the last one first, and the folder of a declaration all of whose stages are among them.

    Such a folder may hold more than the run file asks for by now: rounds of training, say.
    """
    names = [stage.name for stage in stages]
    for name in reversed(names):
        own, local = run.within(name)
        own.reset(local)
    for declared in DECLARED:
        own_names = [stage.name for stage in declared.stages(config)]
        if own_names and set(own_names) <= set(names):
            run.reset(declared.name)


def predict_new(config: RunConfig, images: str, truth: str | None, name: str, pack_voc: bool = False) -> str:
    """Predicts a folder of images with the run's segmenter; returns the folder of what was predicted, or its archive.

    Args:
        config: of the run whose segmenter is asked.
        images: folder of images, a path or a URL.
        truth: folder of label PNGs named by id, to judge by; None for none.
        name: of the folder in `predictions/`.
        pack_voc: whether they are packed for the server of PASCAL VOC.

    Raises:
        ValueError: anything that a user can put right, in one line.
    """
    ledger = Run(Folder(config.run))
    dataset = UnlabelledData(kind="unlabelled", images=images, truth=truth, split=name)
    run_layout.predictions_run(ledger, name).folder.probe()
    trained_folder(config, ledger)
    needed: dict[Role, bool] = {"sam": config.predict.refine == "sams", "clip": config.predict.cam_weight > 0}
    config, models = pin_models(config, [role for role in needed if needed[role]])
    stages = predict.predictions_stages(config, dataset, name)
    # Of the whole run: `run` writes predictions too.
    with hold(ledger.folder, running) as claim, session(config.cluster.address, config.cluster.num_cpus):
        ledger = Run(ledger.folder.guarded(claim))
        meter = Meter(ledger.folder, prices_of(config), budget_of(config))
        own = run_layout.predictions_run(ledger, name)
        _adopt_weights(ledger, stages, models)
        try:
            with meter.counting():
                report = list(_make_all(config, ledger, stages, stages, meter).values())[-1]
        except ChangedInputs as error:
            raise StageError(f"{error.found}; give these predictions another --name") from None
        archive = voc.pack_for_voc(own) if pack_voc else None
    if report.metrics["truth"]:
        print_table(report.metrics)
    return archive or own.folder.url
