"""Names of the folders and files of a run that more than one stage reads or writes."""

from __future__ import annotations

import re
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PREDICTIONS, Run
from fmwsss.core.errors import InputError
from fmwsss.core.vocabularies import custom_vocabulary, vocabulary_named
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.segmenter import SegmenterSection

PREDICTED, REFINED = "predicted", "refined"


VALIDATION = "validation"


LAST, BEST = "last", "best"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def round_stage(number: int) -> str:
    """The stage of one round of training."""
    return f"segmenter/round-{number}"


def kept_folder(section: SegmenterSection) -> str:
    """Which of a round's two segmenters is used: the last, unless the run file lets the validation images choose."""
    return BEST if section.keep == "best" else LAST


def predictions_name(name: str) -> str:
    """The folder, in a run, of what was predicted of one data set.

    Raises:
        StageError: the name is no name for a folder.
    """
    if not NAME.fullmatch(name):
        # Not above: a training step, which needs names of folders, runs where there is no Ray too.
        from fmwsss.jobs.stages import StageError

        raise StageError(f"{name!r} is no name for a folder of predictions: letters, digits, `.`, `_` and `-`")
    return f"{PREDICTIONS}/{name}"


def predictions_run(run: Run, name: str) -> Run:
    """The run in a run that holds one data set and what was predicted of it; raises as `predictions_name`.

    Args:
        run: the run whose segmenter predicts.
        name: of the folder in `predictions/`.

    Returns:
        A run with its own stages.
    """
    return run.within(f"{predictions_name(name)}/images")[0]


METRICS_FILE = "metrics.json"


def vocabulary_of(run: Run) -> Vocabulary:
    """The classes of a run, as its manifest names them; of a run in a run, as that one's does.

    Raises:
        InputError: there is no manifest.
    """
    outer, inside, _ = run.folder.url.rpartition(f"/{PREDICTIONS}/")
    manifest = run.manifest() or (Run(Folder(outer)).manifest() if inside else None)
    if manifest is None:
        raise InputError(f"there is no run at {run.folder.url}: it has no manifest.json")
    return vocabulary_told(manifest["config"]["vocabulary"])


def vocabulary_told(told: Any) -> Vocabulary:
    """The classes that the key `vocabulary` of a run file, or of a manifest, means."""
    return vocabulary_named(told) if isinstance(told, str) else custom_vocabulary(told["classes"], told.get("prompts"))
