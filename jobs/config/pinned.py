"""The models of a run tied to the content of their weights: stages depend on that, not on a path.

A pinned run file has the sha256 of what was found at the start in `clip.sha256` and `sam.sha256`. It is an input of
every stage that depends on the model, and whoever opens the weights, on any machine, compares.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmwsss.cluster.models.checkpoint import read_checkpoint
from fmwsss.cluster.models.extras import demand_package
from fmwsss.cluster.models.known_weights import Role
from fmwsss.cluster.models.loaders import check, factory_sha256
from fmwsss.cluster.models.segmenters import WEIGHTS_FILE
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import file_sha256, weights_file
from fmwsss.cluster.storage.json_files import read_json
from fmwsss.cluster.storage.ledger import INPUTS, Run
from fmwsss.jobs.config.base import Section
from fmwsss.jobs.config.run import RunConfig

ROLES: tuple[Role, ...] = ("clip", "sam")
_SUM_OF = {"clip": "sha256", "sam": "sha256", "segmenter": "weights_sha256"}  # in its section
Models = dict[str, dict[str, str | None]]


def pin_models(config: RunConfig, roles: Sequence[Role] = ROLES) -> tuple[RunConfig, Models]:
    """Looks into the models of a run file and ties them to what is there.

    Args:
        config: the run file.
        roles: which of them.

    Returns:
        the run file with architecture and sha256 as they were found, and what the manifest says of each model.

    Raises:
        ModelError: one of them cannot be had as the run file asks for it.
    """
    models: Models = {}
    for role in roles:
        spec = getattr(config, role).spec()
        models[role] = check(spec, role)
        if spec.factory:
            models[role]["sha256"] = factory_sha256(spec, role)
        if models[role].get("note"):
            print(f"{role}: {models[role]['note']}", flush=True)
    found = {role: {"model": about["model"], "sha256": about.get("sha256")} for role, about in models.items()}
    sections: dict[str, Section] = {role: getattr(config, role).model_copy(update=found[role]) for role in roles}
    return config.model_copy(update=sections), models


def pin_segmenter(config: RunConfig, models: Models) -> RunConfig:
    """The same for the weights that the segmenter begins with, where they lie on this machine or have one file.

    Args:
        config: the run file.
        models: a line is added for the manifest.

    Returns:
        The run file with the sha256.

    Raises:
        ModelError: they are not there, or cannot be read.
    """
    section = config.segmenter
    if section is not None and (section.factory or section.network != "deeplabv3plus"):
        demand_package("transformers", "segmenter", "segmenter")
    if section is None or section.weights is None:
        return config
    if section.network == "deeplabv3plus":
        path = weights_file(ModelSpec(weights=section.weights, sha256=section.weights_sha256))
    elif "://" in section.weights:  # a folder of an object store: too much to be read at every start
        return config
    else:
        path = Path(os.path.expanduser(section.weights)) / WEIGHTS_FILE
    try:
        read_checkpoint(path, with_values=False)
    except OSError:
        raise ModelError(f"segmenter.weights: there is no {path}") from None
    models["segmenter"] = {"weights": section.weights, "sha256": file_sha256(path)}
    pinned = section.model_copy(update={"weights_sha256": models["segmenter"]["sha256"]})
    return config.model_copy(update={"segmenter": pinned})


def adopt_weights(run: Run, stages: Iterable[str], recorded: Mapping[str, Any], models: Models) -> None:
    """Ties the stages of an earlier release, which only knew a name or a path, to the content of their weights.

    That release wrote the sha256 of weight files into its manifest: a stage gets that one, and is refused if another
    file lies there now. Of tags and factories it kept nothing; they are taken to be what they are now, and a line says
    so.

    Args:
        run: with those stages.
        stages: names of stages that were begun.
        recorded: the models of the manifest, before this release writes its own.
        models: as they are now.
    """
    unknown = set()
    for stage in stages:
        folder = run.folder.child(stage)
        inputs: dict[str, Any] = read_json(folder, INPUTS)
        bare = [role for role in models if isinstance(inputs.get(role), dict) and not inputs[role].get(_SUM_OF[role])]
        for role in bare:
            was = recorded.get(role, {}).get("sha256")
            unknown |= {role} if was is None and models[role].get("sha256") else set()
            inputs[role][_SUM_OF[role]] = was or models[role].get("sha256")
        if any(inputs[role][_SUM_OF[role]] for role in bare):
            folder.write(INPUTS, (json.dumps(inputs, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
    for role in sorted(unknown):
        print(
            f"{role}: an earlier release began this run and kept nothing of these weights' content; they are taken to "
            "be the same as now",
            flush=True,
        )
