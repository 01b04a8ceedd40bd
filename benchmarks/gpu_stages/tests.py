"""The tests that need a card (`tests/gpu`), in a process group of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_stages.measure import Hour


def run(hour: Hour) -> None:
    """Runs them; without a card they run on the CPU as far as they can."""
    folder = Path(__file__).parents[2] / "tests" / "gpu"
    if not folder.is_dir():
        hour.tell("tests", skipped="there is no tests/gpu")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "long or not long", str(folder), "--no-header", "-rs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parents[1], check=False)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    print(done.stdout[-6000:], done.stderr[-2000:])
    hour.tell("tests", returncode=done.returncode, summary=last[0])
    if done.returncode not in (0, 5):
        raise AssertionError(last[0])
