"""`fmwsss failures RUN`: what happened to the images that are not in the result, and how to try them again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from fmwsss.cluster.storage.ledger import Run, home_of
from fmwsss.cluster.storage.redaction import plain
from fmwsss.core.errors import InputError

LINE_WIDTH = 160  # of a log or a pipe, where there is no terminal to ask


def failures_of(run: Run, stage: str | None = None) -> list[dict[str, Any]]:
    """The rows of FAILURES of a run, with the full names of their stages; those of runs in the run are among them.

    Args:
        run: the run folder.
        stage: only of this stage, or of the stages in the folder of this name.
    """
    found = run.failures().to_pylist()
    for home in sorted({home for name in (run.manifest() or {"stages": []})["stages"] if (home := home_of(name))}):
        own, _ = run.within(f"{home}images")
        found += [{**row, "stage": f"{home}{row['stage']}"} for row in own.failures().to_pylist()]
    return [row for row in found if stage is None or f"{row['stage']}/".startswith(f"{stage}/")]


def show(run: Run, stage: str | None = None) -> None:
    """Prints the failures of a run: a summary by stage and kind, then one line an image.

    Args:
        run: the run folder.
        stage: only of this stage, or of the stages in the folder of this name; None for all.

    Raises:
        InputError: there is no run, or it has no such stage.
    """
    rows = failures_of(run, stage)
    manifest = run.manifest()  # predictions, a run in a run, have none
    names: list[Any] = manifest["stages"] if manifest is not None else [stage]
    if stage is not None and not any(f"{name}/".startswith(f"{stage}/") for name in names):
        raise InputError(f"{stage} is no stage of {run.folder.url}; its stages are {', '.join(names)}")
    if manifest is None and not rows and not run.folder.list("images/"):
        raise InputError(f"there is no run at {run.folder.url}: it has no manifest.json")
    if not rows:
        print(f"no failures in {stage or 'any stage'} of {run.folder.url}")
        return
    kinds = Counter((row["stage"], row["error_type"]) for row in rows)
    summary = Table("stage", "error", "images", title=f"{len(rows)} failures in {run.folder.url}")
    for (name, kind), count in kinds.most_common():
        summary.add_row(plain(name), plain(kind), str(count))
    table = Table("image", "stage", "error", "message")
    for row in rows:
        cells = (str(row[key]) for key in ("image_id", "stage", "error_type", "message"))
        table.add_row(*(plain(" ".join(cell.split())) for cell in cells))
    console = Console(markup=False, width=None if Console().is_terminal else LINE_WIDTH)
    console.print(summary)
    console.print(table)
