"""slurm/run.sbatch with stand-ins for Slurm's own commands: all that it starts is real, on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fault_injection import DEMO, SMALL
from tests.support.ray_heads import ROOT

SCRIPT = ROOT / "slurm" / "run.sbatch"
# Runs the rest of its line here: whatever node it was meant for.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo node1
echo node2
"""


def environment(folder: Path, num_nodes: int) -> dict[str, str]:
    commands = folder / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FMWSSS_BIN": str(Path(sys.executable).parent),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": str(num_nodes),
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_TMPDIR": "/tmp",  # sockets lie below it, and their paths may not be long
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def run_script(arguments: list[str], folder: Path, num_nodes: int = 1) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        ["bash", SCRIPT, *arguments], cwd=folder, env=environment(folder, num_nodes), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = process.communicate(timeout=800)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # What Slurm would end with the job: Ray's processes have sessions of their own.
        subprocess.run(["pkill", "-9", "-f", f"/tmp/ray-{os.getpid()}/"], check=False)
        shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)
    return subprocess.CompletedProcess(arguments, process.returncode, told)


def test_a_missing_run_file_and_a_missing_package_are_lines(tmp_path: Path) -> None:
    result = run_script([], tmp_path)
    assert (result.returncode, result.stdout) == (2, "usage: sbatch slurm/run.sbatch RUN_FILE [KEY=VALUE]...\n")
    bare = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1"}
    found = subprocess.run(["bash", SCRIPT, "mine.yaml"], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert found.returncode == 2
    assert f"no command ray in {tmp_path}/.venv/bin" in found.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_on_two_nodes_ends_with_seeds_and_leaves_no_token(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_script([DEMO, f"run={run}", *SMALL], tmp_path, num_nodes=2)
    assert result.returncode == 0, result.stdout
    assert "2 of 2 nodes are there" in result.stdout
    assert "seeds/fine: 10 of 10 images" in result.stdout
    assert (run / "reports" / "index.html").exists()
    assert not list(tmp_path.glob(".ray-token-*"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_code_of_the_run_is_that_of_the_job(tmp_path: Path) -> None:
    result = run_script([DEMO, f"run={tmp_path}/run", "dataset.num_image=3"], tmp_path)
    assert result.returncode == 2, result.stdout
    assert "did you mean 'dataset.num_images'" in result.stdout
