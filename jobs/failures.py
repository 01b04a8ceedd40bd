"""`fmwsss failures RUN`: what happened to the images that are not in the result, and how to try them again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.ledger import Run
from jobs.config import RunConfig
from jobs.run_file import check_config

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


def forget(run: Run, stage: str | None = None) -> dict[str, int]:
    """Deletes the parts in which images failed, and all that was made from them: the next start does them again.

    A part of a stage is made from the parts of the same name that it reads, and from the whole of what has no parts
    (learned prompts): so SAM's masks of the other parts stay, and prompts are learned anew where their images change.

    Args:
        run: the run folder.
        stage: only failures of this stage; None means of all.

    Returns:
        Number of images to be tried again, by stage.
    """
    stages = run.stages()
    names = [stage] if stage else list(stages)
    failed = {name: _failed_parts(run, name) for name in names}
    stale = _stale_parts(run, stages, {name: set(parts) for name, parts in failed.items() if parts})
    # What reads goes before what it reads: killed in between, nothing that is left was made from what is gone.
    for name in reversed(_in_order(stages)):
        if name not in stale:
            continue
        parts = stale[name]
        if parts is None:
            run.reset(name)
        else:
            run.delete_parts(name, sorted(parts))
    return {name: sum(parts.values()) for name, parts in failed.items() if parts}


def config_of(run: Run, overrides: list[str] | None) -> RunConfig:
    """The settings that a run was made with, from its manifest; overrides may say where to run now.

    Raises:
        ValueError: there is no run, an override is wrong, or a model comes from a factory: a function is called only
            if a run file names it, and a run folder may come from anybody.
    """
    manifest = run.manifest()
    if manifest is None:
        raise ValueError(f"there is no run at {run.folder.url}: it has no manifest.json")
    config = check_config({**manifest["config"], "run": run.folder.url}, overrides, f"{run.folder.url}/manifest.json")
    factories = (config.clip.factory, config.sam.factory, config.segmenter and config.segmenter.factory)
    if any(factories):
        raise ValueError(
            "a model of this run comes from a factory; say which run file names it: --config RUN_FILE "
            "(for `predict` and `export` in place of RUN)"
        )
    return config


def _failed_parts(run: Run, stage: str) -> dict[str, int]:
    """Failed images of a stage by part."""
    folder = run.folder.child("failures").child(stage)
    return {part: folder.num_rows(part) for part in folder.list("part-")}


def _in_order(stages: dict[str, list[str]]) -> list[str]:
    """Stages, each after all that it reads."""
    order: list[str] = []

    def visit(name: str) -> None:
        for upstream in stages.get(name, []):
            visit(upstream)
        if name not in order:
            order.append(name)

    for name in sorted(stages):
        visit(name)
    return order


def _stale_parts(run: Run, stages: dict[str, list[str]], failed: dict[str, set[str]]) -> dict[str, set[str] | None]:
    """Parts of each stage that have to be done again; None for a whole stage."""
    stale: dict[str, set[str] | None] = {}
    has_parts: dict[str, bool] = {}
    for name in _in_order(stages):
        has_parts[name] = bool(run.folder.child(name).list("part-"))
        parts: set[str] | None = failed.get(name, set())
        for upstream in stages.get(name, []):
            changed: set[str] | None = stale.get(upstream, set())
            if changed is None or (changed and not has_parts[name]):
                parts = None
            elif parts is not None:
                parts = parts | changed
        if parts is None or parts:
            stale[name] = parts
    return stale


def _plain(text: Any) -> str:
    """Text of a dataset on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
