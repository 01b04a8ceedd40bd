"""What a machine without Ray can run: the steps of both trainings, and the benchmarks of single steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; __import__(sys.argv[1])"


@pytest.mark.parametrize(
    "module",
    [
        "benchmarks.precision",
        "benchmarks.prompt_step",
        "benchmarks.proposals",
        "benchmarks.seeding",
        "benchmarks.segmenter_step",
        "fmwsss.jobs.prompts.train_loop",
        "fmwsss.jobs.segmenter.train_loop",
    ],
)
def test_is_imported_where_there_is_no_ray(module: str):
    subprocess.run([sys.executable, "-c", WITHOUT_RAY, module], check=True, cwd=ROOT)
