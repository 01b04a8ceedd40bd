"""What this release would make of a run: where its stages were begun with something else, and what `run` would do.

Nothing is executed or asked for that: the settings are those of the run's manifest, weights are looked at where they
are files of this machine, and are taken to be what they were where they are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmwsss.cluster.models.segmenters import WEIGHTS_FILE
from fmwsss.cluster.models.spec import ModelError
from fmwsss.cluster.models.weights import file_sha256
from fmwsss.cluster.storage.json_files import read_json
from fmwsss.cluster.storage.ledger import INPUTS, READS, ChangedInputs, Run
from fmwsss.core.errors import FmwsssError
from fmwsss.jobs.config.load import check_config
from fmwsss.jobs.config.pinned import ROLES
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.stages import demand_unchanged, receipt_key, receipt_of
from fmwsss.jobs.steps import stages_of


@dataclass(frozen=True)
class Outlook:
    """What `fmwsss run` with the settings of the manifest would find.

    Attributes:
        changes: what a stage was begun with, and what this release would use, by stage; of those that differ.
        refused: why `run` would refuse the run, and what to do; empty where it would go on.
    """

    changes: dict[str, list[str]] = field(default_factory=dict)
    refused: str = ""


def look_ahead(run: Run, manifest: Mapping[str, Any]) -> Outlook:
    """Compares what the stages of a run were begun with, and what this release would make them with.

    Args:
        run: the run folder.
        manifest: of the run.

    Returns:
        What differs, and what comes of it.
    """
    try:
        path = f"{run.folder.url}/manifest.json"
        told = {key: value for key, value in manifest["config"].items() if key != "cluster"}
        config = check_config({**told, "run": run.folder.url}, None, path)
        stages = stages_of(_with_weights(config, manifest.get("models") or {}))
    except FmwsssError as error:
        return Outlook(refused=f"refused, this release does not read its settings: {str(error).splitlines()[0]}")
    except (KeyError, AttributeError):
        return Outlook()  # a run in a run, or what a test writes: it has no settings
    changes = {stage.name: found for stage in stages if (found := _changes(stage, run, config))}
    if not changes:
        return Outlook()
    first = next(iter(changes))
    advice = f"`--from {first}` makes it and what comes after it again; the release and the weights that began it go on"
    return Outlook(changes, f"refused, {first} was begun with something else: {advice}")


def _changes(stage: Stage, run: Run, config: RunConfig) -> list[str]:
    own, local = run.within(stage.name)
    if stage.report or not own.folder.child(local).exists(INPUTS):
        return []
    if config.prompts and "://" in config.prompts and stage.name.startswith("prompts/"):
        return []  # an address of the manifest, which is not asked
    try:
        demand_unchanged([stage], run)
    except ChangedInputs as error:
        return error.changes
    except FmwsssError as error:
        return [str(error)]
    reads = read_json(own.folder.child(local), INPUTS).get(READS, {})
    found = []
    for name in stage.reads:
        receipt = receipt_of(run, name)
        if receipt and reads.get(receipt.stage) and receipt_key(receipt) != reads[receipt.stage]:
            found.append(f"{READS}.{receipt.stage}: made again since")
    return found


def _with_weights(config: RunConfig, recorded: Mapping[str, Any]) -> RunConfig:
    """The run file tied to its weights as `pin_models` does, by what is known of them here."""
    sections: dict[str, Any] = {}
    for role in ROLES:
        section = getattr(config, role)
        spec, known = section.spec(), recorded.get(role) or {}
        update = {"model": known.get("model") or spec.model, "sha256": known.get("sha256") or spec.sha256}
        if found := _sha256(spec.weights):
            update["sha256"] = found
        sections[role] = section.model_copy(update=update)
    segmenter = config.segmenter
    if segmenter is not None and segmenter.weights is not None and "segmenter" in recorded:
        place = segmenter.weights
        is_file = segmenter.network == "deeplabv3plus"
        found = _sha256(place if is_file else str(Path(place) / WEIGHTS_FILE))
        update = {"weights_sha256": found or recorded["segmenter"].get("sha256")}
        sections["segmenter"] = segmenter.model_copy(update=update)
    return config.model_copy(update=sections)


def _sha256(path: str | None) -> str | None:
    """Of a file of this machine; None where it is something else, or can't be read."""
    if path is None or "://" in path or not Path(os.path.expanduser(path)).is_file():
        return None
    try:
        return file_sha256(Path(os.path.expanduser(path)))
    except ModelError:
        return None
