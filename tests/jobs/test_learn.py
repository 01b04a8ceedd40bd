"""Learning as a Ray Train job: two workers learn what one learns, and one that is stopped goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

ROOT = Path(__file__).parents[2]
SMALL = ["dataset.num_images=12", "shard_rows=6", "learn.classification.batch_size=6"]


def fmwsss(step: list[str], run: Path, *more: str) -> list[str]:
    config = str(ROOT / "configs" / "demo.yaml")
    return [sys.executable, "-m", "jobs.cli", *step, config, f"run={run}", *SMALL, *more]


def learned(run: Path) -> np.ndarray:
    return load((run / "prompts" / "classification" / "prompts.safetensors").read_bytes())["context"]


@pytest.mark.timeout(600)
def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        subprocess.run(fmwsss(["ingest"], tmp_path / name), cwd=ROOT, check=True)
        more = ["learn.classification.epochs=2", f"cluster.train_workers={workers}", "cluster.num_cpus=3"]
        subprocess.run(fmwsss(["learn", "classification"], tmp_path / name, *more), cwd=ROOT, check=True)
    one, two = learned(tmp_path / "one"), learned(tmp_path / "two")
    assert np.abs(one - two).max() <= 1e-6


@pytest.mark.timeout(600)
def test_a_killed_job_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    more = ["learn.classification.epochs=20", "cluster.checkpoint_every_s=0"]
    subprocess.run(fmwsss(["ingest"], tmp_path / "killed"), cwd=ROOT, check=True)
    command = fmwsss(["learn", "classification"], tmp_path / "killed", *more)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    checkpoint = tmp_path / "killed" / "prompts" / "classification" / "_checkpoint.pt"
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # the worker ends with its driver, a little later
    kept = checkpoint.read_bytes()
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert kept
    assert not checkpoint.exists()
    assert "prompts/classification: 40 of 40 iterations" in result.stdout

    subprocess.run(fmwsss(["ingest"], tmp_path / "undisturbed"), cwd=ROOT, check=True)
    subprocess.run(fmwsss(["learn", "classification"], tmp_path / "undisturbed", *more), cwd=ROOT, check=True)
    assert np.array_equal(learned(tmp_path / "killed"), learned(tmp_path / "undisturbed"))
