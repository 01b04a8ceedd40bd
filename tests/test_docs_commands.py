"""Every command of README and docs is one that its program takes; those that need no cloud are run as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from tests.support.doc_commands import ELSEWHERE, KNOWN, Command, check, commands
from tests.support.ray_heads import ROOT

COMMANDS = commands()


def test_commands_of_every_program_are_found() -> None:
    assert {command.words[0] for command in COMMANDS} >= set(KNOWN) - {"pipx", "git", "pip"}
    assert sum(command.words[0] not in ELSEWHERE for command in COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_one_that_its_program_takes(command: Command) -> None:
    check(command)


MISTAKES = [
    "fmwsss run voc12 dataset.splitt=train", "fmwsss plan demo --image 3", "fmwsss statsu runs/mine",
    "ray job submit --adress X -- python -m fmwsss.jobs run demo", "ray job submit -- python -m fmwsss.jobs rum demo",
    "ray upp ray_config.yaml", "kubectl apply -f kube.yaml", "make tests", "docker build --build-arg TORCH=1 .",
    "python -m benchmarks.nothing",
]  # fmt: skip


@pytest.mark.parametrize("wrong", MISTAKES)
def test_a_mistake_in_a_page_would_be_found(wrong: str) -> None:
    name, *words = wrong.split()
    with pytest.raises(Exception):  # noqa: B017 - of click, of ours, an assertion
        check(Command("page", (name, *words)))


def test_policies_are_json_with_statements() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL | re.MULTILINE)
    policies = [json.loads(block) for block in blocks]
    assert len(policies) == 3
    assert all(own["Version"] == "2012-10-17" and own["Statement"] for own in policies)


@pytest.mark.parametrize(
    "command",
    [
        "fmwsss status RUN", "fmwsss failures RUN", "fmwsss verify RUN", "fmwsss prompts show RUN", "fmwsss doctor",
        "fmwsss convert RUN --to coco --output OUT", "fmwsss convert RUN --to yolo --output OUT", "fmwsss schema",
    ],
)  # fmt: skip
@pytest.mark.long
@pytest.mark.timeout(900)
def test_commands_about_a_run_work_on_one(command: str, undisturbed: str, tmp_path: Path) -> None:
    words = command.replace("RUN", undisturbed).replace("OUT", str(tmp_path / "out")).split()
    result = subprocess.run(
        [sys.executable, "-m", "fmwsss.jobs", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip()


def readme_submission() -> list[str]:
    """The command line of README that starts COCO on a cluster."""
    (found,) = [
        list(own.words) for own in COMMANDS if own.page == "README.md" and own.words[:3] == ("ray", "job", "submit")
    ]
    return found


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("fresh_s3")
def test_the_job_of_the_readme_runs_from_a_bucket_into_it(s3_url: str, tmp_path: Path) -> None:
    """As it stands, but for the bucket's name and a preset of small models laid over that of COCO."""
    from tests.support.coco_bucket import PRESET, fill
    from tests.test_ray_job import serve_jobs, submit

    bucket = f"{s3_url}/readme"
    fill(Folder(f"{bucket}/coco"), num_images=6)
    job = tmp_path / "job"
    job.mkdir()
    (job / "small.yaml").write_text(PRESET)
    with serve_jobs(tmp_path) as (address, environment):
        words = [word.replace("s3://bucket", bucket) for word in readme_submission()]
        words[words.index("--address") + 1] = address
        words[words.index("coco14")] = "small.yaml"
        words[words.index("cluster.max_gpus=16")] = "cluster.num_replicas=1"  # there is no GPU here
        words[words.index("--") : words.index("--")] = ["--working-dir", str(job)]
        result = submit([str(Path(sys.executable).with_name("ray")), *words[1:]], environment)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    assert "seeds/fine: 6 of 6 images" in log
    names = Folder(f"{bucket}/runs/coco").list()
    assert "reports/metrics.json" in names
    assert any(name.startswith("spending/") for name in names)
    shutil.rmtree(job)
