"""`fmwsss failures RUN`: what happened to the images that are not in the result, and how to try them again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from fmwsss.cluster.storage.ledger import Run

LINE_WIDTH = 160  # of a log or a pipe, where there is no terminal to ask


def show(run: Run, stage: str | None = None) -> None:
    """Prints the failures of a run: a summary by stage and kind, then one line an image."""
    rows = run.failures(stage).to_pylist()
    manifest = run.manifest()  # predictions, a run in a run, have none
    if stage is not None and manifest is not None and stage not in manifest["stages"]:
        raise ValueError(f"{stage} is no stage of {run.folder.url}; its stages are {', '.join(manifest['stages'])}")
    if not rows:
        print(f"no failures in {stage or 'any stage'} of {run.folder.url}")
        return
    kinds = Counter((row["stage"], row["error_type"]) for row in rows)
    summary = Table("stage", "error", "images", title=f"{len(rows)} failures in {run.folder.url}")
    for (name, kind), count in kinds.most_common():
        summary.add_row(name, kind, str(count))
    table = Table("image", "stage", "error", "message")
    for row in rows:
        table.add_row(*(_plain(row[key]) for key in ("image_id", "stage", "error_type", "message")))
    console = Console(markup=False, width=None if Console().is_terminal else LINE_WIDTH)
    console.print(summary)
    console.print(table)


def _plain(text: Any) -> str:
    """Text of a dataset on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
