"""`fmwsss status RUN`: how far a run is, read from its folder alone, from any machine that sees it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any

from rich.console import Console
from rich.table import Table

from fmwsss.cluster.storage.driver_lock import SILENT_S, is_gone, read_claims
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.redaction import plain
from fmwsss.cluster.storage.spending import spent_by
from fmwsss.core.errors import InputError
from fmwsss.jobs.commands.failures import failures_of
from fmwsss.jobs.commands.outlook import look_ahead

LINE_WIDTH = 120  # of a log or a pipe


def gather(run: Run) -> dict[str, Any]:
    """The state of a run as JSON.

    Returns:
        `run`, `driver` (`state`: "working", "silent", "dead" or "none"; where, and since when), `stages` in their order
        (`stage`, `state`: "complete", "working", "begun" or "waiting"; `done`, `total`, `left`, `failed`, `per_second`,
        `seconds_left`, `note`; null where it can't be known; `changes`: what it was begun with and this release would
        not use), `failures` (`stage`, `error_type`, `images`), `next`: what `fmwsss run` would do, and `spent`
        (`gpu_hours`, `cost`, `hours`, `currency`, and of the limits `gpu_hours_left` and `cost_left`, null without
        one).

    Raises:
        ValueError: there is no run.
    """
    manifest = run.manifest()
    if manifest is None:
        raise InputError(f"there is no run at {run.folder.url}: it has no manifest.json")
    driver = _driver(run)
    working = driver.pop("progress")
    begun = run.stages()
    # A run of an earlier version does not say what its stages count.
    units = manifest.get("units") or dict.fromkeys(manifest["stages"], "iterations")
    stages = [
        _stage(run, stage, working, _num_images(run, stage) if units[stage] == "images" else None, stage in begun)
        for stage in manifest["stages"]
        if units[stage] and stage != "reports"
    ]
    kinds = Counter((row["stage"], row["error_type"]) for row in failures_of(run))
    failures = [{"stage": stage, "error_type": kind, "images": count} for (stage, kind), count in kinds.most_common()]
    outlook = look_ahead(run, manifest)
    for row in stages:
        row["changes"] = outlook.changes.get(row["stage"], [])
    if driver["state"] != "working":
        told = outlook.refused or _next([(row["stage"], row["state"]) for row in stages])
    else:
        told = "refused while this driver works on it"
    about = {"run": run.folder.url, "driver": driver, "stages": stages, "failures": failures, "next": told}
    return {**about, "spent": _spent(run, manifest.get("config", {}))}


def _next(stages: list[tuple[str, str]]) -> str:
    """What `run` does first, of stages and their states."""
    stage, state = next(((stage, state) for stage, state in stages if state != "complete"), ("", ""))
    if not stage:
        return "nothing is left to be made"
    return f"goes on with {stage}" if state == "begun" else f"makes {stage}"


def _spent(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """What the run has spent, a minute old at the most while a driver works, and what is left by its last settings."""
    spent = spent_by(run.folder)
    limits = {"gpu_hours_left": (config.get("max_gpu_hours"), spent.gpu_hours),
              "cost_left": (config.get("max_cost"), spent.cost)}  # fmt: skip
    left = {key: None if limit is None else max(0.0, limit - gone) for key, (limit, gone) in limits.items()}
    return {**asdict(spent), "currency": config.get("prices", {}).get("currency", ""), **left}


def _num_images(run: Run, stage: str) -> int | None:
    """How many images a stage goes over, once they are counted."""
    own, local = run.within(stage)
    images = own.receipt("images") if local != "images" else None
    return images.num_rows if images else None


def show(state: dict[str, Any]) -> None:
    """Prints what `gather` returned for people."""
    driver = state["driver"]
    told = {
        "none": "no driver works on it",
        "working": "at work",
        "silent": "no sign of it for more than a minute: dead, or without a network",
        "dead": "it has died; the same command goes on from here",
    }[driver["state"]]
    if driver["state"] != "none":
        told = f"{driver['host']}, process {driver['pid']}, since {driver['started']}: {told}"
    console = Console(markup=False, highlight=False, width=None if Console().is_terminal else LINE_WIDTH)
    console.print(plain(f"run     {state['run']}\ndriver  {told}"))
    table = Table("stage", "state")
    for head in ("done", "left", "failed", "a second", "time left"):
        table.add_column(head, justify="right")
    for row in state["stages"]:
        rate = f"{row['per_second']:.2f}" if row["per_second"] else ""
        left_s = row["seconds_left"]
        time_left = str(timedelta(seconds=round(left_s))) if left_s is not None else ""
        cells = ["" if row[key] is None else str(row[key]) for key in ("done", "left", "failed")]
        table.add_row(plain(row["stage"]), plain(f"{row['state']} {row['note']}".strip()), *cells, rate, time_left)
    console.print(table)
    for row in state["stages"]:
        for change in row["changes"]:
            console.print(plain(f"changed {row['stage']}: {change}"))
    console.print(plain(f"next    `fmwsss run`: {state['next']}"))
    console.print(plain(_told_spent(state["spent"])))
    for row in state["failures"]:
        console.print(plain(f"failed  {row['images']} images in {row['stage']}: {row['error_type']}"))


def _told_spent(spent: dict[str, Any]) -> str:
    parts = [f"{spent['hours']:.2f} h of drivers"]
    amounts = (("gpu_hours", "GPU hours", spent["gpu_hours"]), ("cost", spent["currency"] or "of money", spent["cost"]))
    for key, unit, amount in amounts:
        left = spent[f"{key}_left"]
        if amount or left is not None:
            parts.append(f"{amount:.2f} {unit}" + (f" ({left:.2f} left)" if left is not None else ""))
    return f"spent   {', '.join(parts)}"


def _driver(run: Run) -> dict[str, Any]:
    claims = list(read_claims(run.folder).values())
    if not claims:
        return {"state": "none", "progress": None}
    claim = max(claims, key=lambda claim: claim["at"])
    gone = is_gone(claim)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(claim["at"])
    # On another machine all there is to go by is its clock.
    state = "dead" if gone else "silent" if gone is None and age.total_seconds() > SILENT_S else "working"
    about = {key: claim[key] for key in ("host", "pid", "started", "at")}
    return {"state": state, **about, "progress": claim["progress"] if state == "working" else None}


def _stage(run: Run, stage: str, working: dict[str, Any] | None, num_images: int | None, begun: bool) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("done", "total", "left", "failed", "per_second", "seconds_left"))
    row |= {"stage": stage, "state": "waiting", "note": ""}
    own, local = run.within(stage)
    receipt = own.receipt(local)
    if receipt:
        rate = receipt.num_rows / receipt.seconds if receipt.seconds else None
        return row | {
            "state": "complete", "done": receipt.num_rows, "left": 0, "failed": receipt.num_failures,
            "total": receipt.num_rows + receipt.num_failures, "per_second": rate,
        }  # fmt: skip
    if working and working["stage"] == stage:
        left = working["total"] - working["done"]
        fresh = working["done"] - working["resumed"]
        rate = fresh / working["seconds"] if fresh and working["seconds"] else None
        return row | {
            "state": "working", "done": working["done"], "total": working["total"], "left": left,
            "failed": working["failed"], "per_second": rate, "seconds_left": left / rate if rate else None,
            "note": working["note"],
        }  # fmt: skip
    if begun and (parts := own.parts(local)):
        done, failed = own.count_rows(local, parts), own.failures(local).num_rows
        left = num_images - done - failed if num_images is not None else None
        return row | {"state": "begun", "done": done, "failed": failed, "total": num_images, "left": left}
    return row | {"state": "begun" if begun else "waiting", "total": num_images}
