"""Prompts that were learned elsewhere, in place of learning them (`prompts:` of the run file)."""

from __future__ import annotations

import hashlib
from typing import Any

from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Receipt, Run
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.prompts.encode import Which
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, upstream
from fmwsss.jobs.training.checkpoint import HISTORY_FILE


def settings(config: RunConfig, which: Which) -> dict[str, Any]:
    """What prompts that are taken depend on: their content, and what they are used with.

    Args:
        config: the run file.
        which: classification or segmentation.

    Returns:
        A part of a stage's identity.
    """
    return {
        "clip": config.clip.model_dump(),
        "vocabulary": config.model_dump()["vocabulary"],
        "prompts_sha256": hashlib.sha256(read_prompts(config, which)).hexdigest(),
    }


def take(config: RunConfig, stage: Stage, run: Run, which: Which) -> Receipt:
    """Copies one set of prompts, and the history of its losses, from the run that `config.prompts` names.

    Args:
        config: the run file.
        stage: the one that would learn them.
        run: the run folder.
        which: classification or segmentation.

    Returns:
        The receipt of the stage.

    Raises:
        ValueError: there are none, or they belong to another CLIP or another vocabulary; the message says which.
    """
    source = _source(config, which)
    data = read_prompts(config, which)
    receipts = upstream(run, stage.name, stage.reads)
    started = begin_stage(run, stage.name, stage.inputs(), receipts)
    if started.receipt:
        return started.receipt
    check(config.clip.spec(), config.resolve_vocabulary(), data, f"{source.url}/{PROMPTS_FILE}")
    own = run.folder.child(stage.name)
    if source.exists(HISTORY_FILE):
        own.write(HISTORY_FILE, source.read(HISTORY_FILE))
    own.write(PROMPTS_FILE, data)
    return finish_stage(run, started, parts=[PROMPTS_FILE], num_rows=0, num_failures=0)


def read_prompts(config: RunConfig, which: Which) -> bytes:
    """The file of one set of prompts.

    Args:
        config: the run file.
        which: classification or segmentation.

    Returns:
        A safetensors file.

    Raises:
        StageError: there is none.
    """
    folder = _source(config, which)
    if not folder.exists(PROMPTS_FILE):
        raise StageError(f"prompts: {config.prompts} has no {which} prompts ({folder.url}/{PROMPTS_FILE})")
    return folder.read(PROMPTS_FILE)


def _source(config: RunConfig, which: str) -> Folder:
    assert config.prompts is not None
    return Folder(config.prompts).child(f"prompts/{which}")


def check(spec: ModelSpec, vocabulary: Vocabulary, data: bytes, name: str) -> None:
    """Whether prompts can be used here.

    Args:
        spec: of the run's CLIP.
        vocabulary: of the run.
        data: a safetensors file.
        name: of the prompts, for the message.

    Raises:
        StageError: they belong to another CLIP or another vocabulary.
    """
    # torch comes with it: a driver starts without.
    from fmwsss.core.prompts.learner import PromptLearner

    try:
        PromptLearner.from_bytes(load_clip(spec), vocabulary, data)
    except ValueError as error:
        raise StageError(f"prompts: {name}: {error}") from error
