"""The first hour on a card: correctness and speed of everything that runs on a GPU, each subject within its own limit.

    python -m benchmarks.gpu_hour [--only NAME...] [--budget-s 560] [--out DIR] [--device cuda|cpu] [--tiny]
                                  [--sam FACTORY] [--images FOLDER] [--baseline FILE]

Needs the repository and a few packages; neither Ray nor a network. Each stage is a process: one that crashes or runs
past its limit costs itself alone, and what it had measured is kept. `gpu.json` is complete after every stage,
`gpu_tables.txt` the same as tables, `log.txt` what the stages printed, `*.json.gz` timelines for a browser.

Exit status 1: a stage failed, that is something on the card is not what it is on the CPU. A stage for which too little
of the budget is left is skipped. With --baseline the times of an earlier `gpu.json` stand beside the new ones.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_tables import markdown


class Stage(NamedTuple):
    """A stage, and the seconds after which it is stopped."""

    name: str
    limit_s: float


STAGES = (
    Stage("env", 40), Stage("tests", 120), Stage("sam", 180), Stage("prompts", 120), Stage("maps", 60),
    Stage("segmenter", 120), Stage("replicas", 120), Stage("faults", 60), Stage("profile", 80), Stage("encoder", 90),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[stage.name for stage in STAGES])
    parser.add_argument("--budget-s", type=float, default=560)
    parser.add_argument("--out", type=Path, default=Path("gpu_hour"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds, to try the program")
    parser.add_argument("--limit-factor", type=float, default=1.0, help="times the limit of every stage")
    parser.add_argument("--sam", metavar="FACTORY", help="package.module:function of a SAM with trained weights")
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--baseline", type=Path, help="an earlier gpu.json, for comparison")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sys.exit(1 if measure(options) else 0)


def measure(options: argparse.Namespace) -> bool:
    """Runs the stages; returns whether one of them failed."""
    ends_s = time.monotonic() + options.budget_s
    result: dict[str, Any] = {
        "version": 1, "commit": _commit(), "date": str(date.today()), "device": options.device, "tiny": options.tiny,
        "ceilings": {}, "stages": [],
    }  # fmt: skip
    baseline = json.loads(options.baseline.read_text()) if options.baseline else None
    for stage in STAGES:
        if options.only and stage.name not in options.only:
            continue
        left_s, limit_s = ends_s - time.monotonic(), options.limit_factor * stage.limit_s
        if left_s < min(30.0, limit_s):
            outcome = {"name": stage.name, "status": "skipped", "reason": f"{left_s:.0f} s are left", "rows": []}
        else:
            outcome = _run(stage, min(limit_s, left_s), options, result["ceilings"])
        result["stages"].append(outcome)
        for row in outcome["rows"]:
            if row["what"] == "ceiling":
                result["ceilings"][row["name"]] = row["value"]
        print(f"{stage.name}: {outcome['status']} {outcome.get('reason') or ''}", flush=True)
        _replace(options.out / "gpu.json", json.dumps(result, indent=1))
        _replace(options.out / "gpu_tables.txt", markdown(result, baseline))
    print((options.out / "gpu_tables.txt").read_text())
    return any(stage["status"] in ("failed", "timeout") for stage in result["stages"])


def _run(stage: Stage, limit_s: float, options: argparse.Namespace, ceilings: dict[str, float]) -> dict[str, Any]:
    rows, began_s = options.out / f"{stage.name}.jsonl", time.monotonic()
    rows.unlink(missing_ok=True)
    settings = {
        "device": options.device, "tiny": options.tiny, "sam": options.sam, "ceilings": ceilings, "rows": str(rows),
        "images": str(options.images) if options.images else None, "traces": str(options.out),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.gpu_stages", stage.name, json.dumps(settings)]
    status, reason = "ok", None
    with (options.out / "log.txt").open("a") as log:
        print(f"== {stage.name}", file=log, flush=True)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if process.wait(limit_s):
                status, reason = "failed", _last_line(options.out / "log.txt")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status, reason = "timeout", f"stopped after {limit_s:.0f} s"
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    rows.unlink(missing_ok=True)
    return {
        "name": stage.name, "status": status, "reason": reason, "seconds": time.monotonic() - began_s, "rows": found,
    }  # fmt: skip


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _commit() -> str | None:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or os.environ.get("FMWSSS_COMMIT")


if __name__ == "__main__":
    main()
