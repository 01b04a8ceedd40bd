"""`fmwsss prompts show`: the real words nearest to what was learned."""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.table import Table

from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Run
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.jobs.config.load import config_of, load_config
from fmwsss.jobs.stages import StageError

UNREAD = ("dataset", "prompts", "proposals")
KINDS: tuple[Literal["classification", "segmentation"], ...] = ("classification", "segmentation")


def show(
    run_folder: str, kind: Literal["classification", "segmentation"] | None, count: int, run_file: str | None = None
) -> None:
    """Prints a table for each set of prompts that a run has: its contexts and the words nearest to their vectors.

    Args:
        run_folder: path or URL.
        kind: one set of prompts; None for both.
        count: of words for each vector.
        run_file: that names the CLIP, in place of the run's manifest.

    Raises:
        ValueError: no run there, no such prompts in it, or prompts of another CLIP or vocabulary.
    """
    run = Run(Folder(run_folder))
    if run.manifest() is None:
        raise StageError(f"{run.folder.url} holds no run (it has no manifest.json)")
    config = load_config(run_file, [f"run={run_folder}"]) if run_file else config_of(run, None, UNREAD)
    kinds = [name for name in KINDS if run.receipt(f"prompts/{name}") and kind in (None, name)]
    if not kinds:
        what = f"{kind} prompts" if kind else "prompts"
        raise StageError(f"{run.folder.url} has no learned {what} yet; `fmwsss run RUN_FILE` makes them")
    clip, vocabulary = load_clip(config.clip.spec()), config.resolve_vocabulary()
    for name in kinds:
        data = run.folder.child(f"prompts/{name}").read(PROMPTS_FILE)
        learner = PromptLearner.from_bytes(clip, vocabulary, data)
        table = Table(title=f"{name} prompts: {learner.settings['context']}, name {learner.settings['name_position']}")
        for head in ("context", "vector", "nearest words (distance)"):
            table.add_column(head)
        for owner, vectors in learner.nearest_words(count):
            for number, words in enumerate(vectors, start=1):
                near = ", ".join(f"{word} ({distance:.2f})" for word, distance in words)
                table.add_row(owner if number == 1 else "", str(number), near)
        Console().print(table)
