"""`fmwsss logs RUN --image ID`: where an image was at work, what became of it, and what its worker wrote."""

from __future__ import annotations

import glob
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.errors import InputError
from fmwsss.jobs.commands.failures import failures_of
from fmwsss.jobs.images.record import read_record

TAIL_LINES = 40


def run(run: Run, image_id: str) -> list[str]:
    """The story of one image.

    Args:
        run: the run folder.
        image_id: as in the tables.

    Returns:
        Lines: each operator that had its shard, with machine, process and time; its failures with their tracebacks; the
        end of each worker's log that lies on this machine.

    Raises:
        InputError: the run has no such image.
    """
    rows = read_record(run, "images")
    if rows is None:
        raise InputError(f"{run.folder.url} does not tell which image is in which shard: its images are not taken yet")
    found = [row for row in rows if row["image_id"] == image_id]
    if not found:
        raise InputError(f"{run.folder.url} has no image {image_id!r}; `fmwsss failures` lists those that failed")
    part = part_name(found[0]["shard"])
    lines = [f"{image_id} is in shard {found[0]['shard']} ({part}), from {found[0]['image_url']}"]
    events = sorted((own for own in run.timeline() if own["args"]["part"] == part), key=lambda own: own["ts"])
    lines += [_told(event) for event in events]
    if not events:
        lines.append("no stage that is complete tells of it: times are written with a stage's receipt")
    for failure in failures_of(run):
        if failure["image_id"] == image_id:
            lines.append(f"failed in {failure['stage']}: {failure['error_type']}: {failure['message']}")
            lines += [f"    {line}" for line in (failure["traceback"] or "").splitlines()]
    for process in dict.fromkeys(event["tid"] for event in events):
        for path in _logs_of(process):
            text = Path(path).read_text(errors="replace").splitlines()[-TAIL_LINES:]
            lines += [f"the end of {path}:", *(f"    {line}" for line in text)] if text else []
    return lines


def _told(event: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(event["ts"] / 1e6, timezone.utc).isoformat(timespec="seconds")
    where = f"node {event['pid']}, process {event['tid']}"
    return f"{event['cat']}: {event['name']} on {where}, {at}, {event['dur'] / 1e6:.2f} s for the shard"


def _logs_of(process: int) -> list[str]:
    """Files of a worker of Ray on this machine; on another one they are found by the same name."""
    folder = os.environ.get("RAY_TMPDIR", "/tmp")
    return sorted(glob.glob(f"{folder}/ray/session_*/logs/worker-*-{process}.*"))
