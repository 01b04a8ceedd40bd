"""The files that bring machines: each against the schema of who reads it, and against what the docs promise."""

from __future__ import annotations

import os
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from fmwsss.jobs.config.load import load_config
from tests.support.ray_heads import ROOT

CLOUD_FILES = ["ray_config.yaml", "ray_config.gcp.yaml"]
# A folder with the CRDs of KubeRay and Kueue as YAML files, which no registry of packages has.
CRDS = "FMWSSS_TEST_CRDS"
KUBERNETES = [
    document for name in ("kuberay.yaml", "kueue.yaml") for document in yaml.safe_load_all((ROOT / name).open())
]


def cluster_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", CLOUD_FILES)
def test_a_cluster_file_is_one_that_ray_up_takes(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = cluster_file(name)
    validate_config(prepare_config(config))
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert "GPU" not in head["resources"]
    assert all(kind["resources"]["GPU"] == 1 and not kind.get("min_workers") for kind in kinds.values())
    assert config["idle_timeout_minutes"] > 0
    # Without a token `ray start` would refuse on every one of them.
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("name", CLOUD_FILES)
def test_rays_autoscaler_takes_spot_machines_first_and_the_others_when_there_are_none(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount  # pyright: ignore[reportAttributeAccessIssue]

    class NoEvents:
        def log_cluster_scheduling_updates(self, **told: Any) -> None:
            pass

    config = AutoscalingConfig(prepare_config(cluster_file(name)), skip_content_hash=True)

    def launched(num_replicas: int, **available: float) -> dict[str, int]:
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=[
                ResourceRequestByCount(request=ResourceRequestUtil.make({"GPU": 1, "CPU": 0.5}), count=num_replicas)
            ],
            recoverable_resource_availabilities=available,
        )
        reply = ResourceDemandScheduler(NoEvents()).schedule(request)  # type: ignore[arg-type]
        return {each.instance_type: each.count for each in reply.to_launch}

    assert launched(16) == {"spot_l4": 16}
    assert launched(16, spot_l4=0.0) == {"spot_l4_large": 16}
    assert launched(16, spot_l4=0.0, spot_l4_large=0.1) == {"on_demand": 4, "spot_l4_large": 12}


def test_aws_machines_have_a_role_and_an_image_that_is_there() -> None:
    config = cluster_file("ray_config.yaml")
    kinds = config["available_node_types"]
    assert all(kind["node_config"]["IamInstanceProfile"]["Name"] for kind in kinds.values())
    assert len({kind["node_config"]["ImageId"] for kind in kinds.values()}) == 1
    is_spot = {name: "InstanceMarketOptions" in kind["node_config"] for name, kind in kinds.items()}
    assert is_spot == {"head": False, "spot_l4": True, "spot_l4_large": True, "on_demand": False}
    assert kinds["spot_l4"]["node_config"]["InstanceType"] != kinds["spot_l4_large"]["node_config"]["InstanceType"]
    assert config["provider"]["availability_zone"].count(",") >= 2
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_job_for_kubernetes_is_a_run_of_ours() -> None:
    job = yaml.safe_load((ROOT / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    python, flag, module, run_file, *overrides = shlex.split(spec["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "fmwsss.jobs.pipeline")
    config = load_config(run_file, overrides)
    places = [config.run, config.dataset.images, config.dataset.labels, config.sam.weights]  # type: ignore[union-attr]
    assert all(str(place).startswith("s3://bucket/") for place in places)
    assert config.sam.sha256
    assert spec["backoffLimit"] > 0
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


def test_what_kuberays_operator_refuses_beyond_its_schema_is_not_there() -> None:
    """Its `utils/validation.go`, release 1.7."""
    spec = yaml.safe_load((ROOT / "kuberay.yaml").read_text())["spec"]
    # Rules of deletion and the older way exclude each other, and an autoscaled cluster deletes its workers itself.
    assert "shutdownAfterJobFinishes" not in spec
    assert "ttlSecondsAfterFinished" not in spec
    assert {rule["policy"] for rule in spec["deletionStrategy"]["deletionRules"]} == {"DeleteCluster"}
    assert spec["submissionMode"] == "SidecarMode"
    assert not {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & spec.keys()
    assert spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["preRunningDeadlineSeconds"] > 0


@pytest.mark.parametrize("document", KUBERNETES, ids=lambda document: document["kind"])
def test_a_document_for_kubernetes_fits_its_definition(document: dict[str, Any]) -> None:
    """Held so by hand on 2026-11-27: KubeRay 1.7.0-rc and Kueue 0.20-devel; no error, no unknown field."""
    if CRDS not in os.environ:
        pytest.skip(f"{CRDS} names no folder of definitions")
    definitions = {
        (f"{definition['spec']['group']}/{each['name']}", definition["spec"]["names"]["kind"]): each
        for path in Path(os.environ[CRDS]).glob("*.yaml")
        for definition in yaml.safe_load_all(path.read_text())
        for each in definition["spec"]["versions"]
    }
    definition = definitions[document["apiVersion"], document["kind"]]
    schema = strict(definition["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(document, schema)


def strict(node: Any) -> Any:
    """A schema of Kubernetes as one that refuses unknown fields, which a server would drop with a warning."""
    if isinstance(node, list):
        return [strict(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    found = {key: strict(value) for key, value in node.items()}
    if found.get("x-kubernetes-int-or-string"):
        return {}
    is_closed = not found.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in found
    if found.get("type") == "object" and "properties" in found and is_closed:
        found["additionalProperties"] = False
    return found


def test_all_files_take_the_image_of_the_dockerfile() -> None:

    tag = f"fmwsss:{version('fmwsss')}"
    assert tag in (ROOT / "Dockerfile").read_text()
    images = [cluster_file(name)["docker"]["image"] for name in CLOUD_FILES]
    cluster = yaml.safe_load((ROOT / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images += [group["template"]["spec"]["containers"][0]["image"] for group in groups]
    assert {image.rpartition("/")[2] for image in images} == {tag}


def test_the_script_for_slurm_is_one_that_bash_reads() -> None:
    assert subprocess.run(["bash", "-n", ROOT / "slurm" / "run.sbatch"], check=False).returncode == 0
