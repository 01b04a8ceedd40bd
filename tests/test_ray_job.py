"""`ray job submit` to a real head on this machine, and the cluster file for `ray up`."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from fmwsss.jobs.config.load import load_config
from tests.support.ray_heads import RAY, ROOT, free_port, serve_head, token_environment


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head with a dashboard, token authentication on: its address for jobs, and the environment of a client."""
    environment = token_environment(tmp_path_factory.mktemp("head"))
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


def test_the_cluster_file_is_one_that_ray_up_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "ray_config.yaml").read_text())
    validate_config(prepare_config(config))
    assert "GPU" not in config["available_node_types"]["head"]["resources"]
    assert config["available_node_types"]["gpu_worker"]["min_workers"] == 0
    starts = config["head_start_ray_commands"][1:] + config["worker_start_ray_commands"][1:]
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    # Without a token `ray start` would refuse on every one of them.
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_the_manifest_for_kubernetes_is_a_ray_job_of_ours() -> None:
    """It was also held against the operator's own schema (KubeRay of 2026-08: no error, no unknown field)."""
    job = yaml.safe_load((ROOT / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    python, flag, module, run_file, *overrides = spec["entrypoint"].split()
    assert (python, flag, module) == ("python", "-m", "fmwsss.jobs.pipeline")
    config = load_config(str(ROOT / run_file), overrides)
    assert config.run.startswith("s3://")
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert config.cluster.max_gpus == workers["maxReplicas"]
    containers = [group["template"]["spec"]["containers"][0] for group in (head, workers)]
    assert len({container["image"] for container in containers}) == 1
    assert all(container["envFrom"] == [{"secretRef": {"name": "fmwsss-s3"}}] for container in containers)
    assert [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers] == [None, "1"]
