"""`ray job submit` to a real head on this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_heads import RAY, ROOT, free_port, serve_head, token_environment


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head with a dashboard, token authentication on: its address for jobs, and the environment of a client."""
    with serve_jobs(tmp_path_factory.mktemp("head")) as served:
        yield served


@contextlib.contextmanager
def serve_jobs(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The same for the length of a `with`; its token lies in `folder`."""
    environment = token_environment(folder)
    dashboard = free_port()
    options = [
        f"--port={free_port()}",
        "--num-cpus=3",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        # Its own too: with the usual one taken by another Ray on this machine, no job would ever find an agent.
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    with serve_head(options, environment) as process:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                    break
            assert process.poll() is None, "the head ended"
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}", environment


def submit(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submits a job and follows it to its end; a head that is just up may have no agent for jobs yet."""
    for _ in range(20):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        if "No available agent" not in result.stdout + result.stderr:
            break
        time.sleep(3)
    return result


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_submitted_job_makes_a_run(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    job = tmp_path / "job"
    job.mkdir()
    shutil.copy(ROOT / "configs" / "demo.yaml", job)
    run = tmp_path / "run"
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(job), "--", "python", "-m",
               "fmwsss.jobs.pipeline", "demo.yaml", f"run={run}", "dataset.num_images=6", "shard_rows=3",
               "propose.points_per_side=4", "cluster.num_replicas=1", "learn.classification.epochs=1",
               "learn.segmentation.epochs=1"]  # fmt: skip
    result = submit(command, environment)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    assert "seeds/fine: 6 of 6 images" in log
    assert len(json.loads((run / "reports" / "metrics.json").read_text())["rows"]) == 9


@pytest.mark.timeout(600)
def test_a_job_with_a_mistake_fails_with_its_line(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    job = tmp_path / "job"
    job.mkdir()
    shutil.copy(ROOT / "configs" / "demo.yaml", job)
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(job), "--", "python", "-m",
               "fmwsss.jobs.pipeline", "demo.yaml", "dataset.num_image=3"]  # fmt: skip
    result = submit(command, environment)
    assert result.returncode != 0
    assert "Unknown key: 'dataset.num_image'; did you mean 'dataset.num_images'?" in result.stdout + result.stderr
