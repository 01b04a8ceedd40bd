"""`fmwsss doctor`: what a machine has and lacks, in words, and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fmwsss.jobs", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.timeout(240)
def test_this_machine_is_told_in_words() -> None:
    result = doctor()
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} <= {"has", "note"}
    for what in (
        "Python 3.",
        "ray 2.",
        "CPUs",
        "Ray's object store",
        "free in this folder",
        "token for Ray",
        "nodes with",
    ):
        assert any(what in line for line in lines), what


@pytest.mark.timeout(240)
def test_a_cluster_that_does_not_answer_is_lacking() -> None:
    result = doctor("--address", "127.0.0.1:1")
    assert result.returncode != 0
    assert "127.0.0.1:1" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
