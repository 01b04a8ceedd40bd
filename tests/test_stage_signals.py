"""Ctrl-C and SIGTERM in every declared stage: 130 or 143, the line, the claim goes, and the same command goes on.

One run, on one cluster, that is stopped in each of its stages, one after the other.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fmwsss.cluster.storage.driver_lock import read_claims
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import INPUTS, Run
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.stages import receipt_of
from fmwsss.jobs.steps import DECLARED, stages_of
from tests.support.fault_injection import end
from tests.support.ray_heads import ROOT, free_port, serve_head, token_environment
from tests.support.segmenter_runs import CONFIG, TINY

SETTINGS = [
    *TINY, "segmenter.engine=ray", "predict.cam_weight=0.5", "learn.classification.cache=input",
    "learn.segmentation.cache=input", "seeds.coarse.foreground=patches", "seeds.fine.foreground=patches",
    "learn.classification.epochs=1", "learn.segmentation.epochs=1", "learn.classification.batch_size=4",
    "learn.segmentation.batch_size=4",
]  # fmt: skip
ASKED = stages_of(load_config(CONFIG, SETTINGS))
STAGES = [stage.name for stage in ASKED]
NUM_TRIES = 3  # of a stage that came to its end before the signal did
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Place:
    run: Run
    log: Path
    environment: dict[str, str]
    address: str

    def start(self) -> subprocess.Popen[bytes]:
        where = [f"run={self.run.folder.url}", f"cluster.address={self.address}", "cluster.num_replicas=1"]
        command = [sys.executable, "-m", "fmwsss.jobs", "run", CONFIG, *SETTINGS, *where]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def is_at(self, stage: str) -> bool:
        """Whether a driver is in the middle of a stage."""
        if any((claim["progress"] or {}).get("stage") == stage for claim in read_claims(self.run.folder).values()):
            return True
        return self.run.folder.child(stage).exists(INPUTS) and receipt_of(Run(self.run.folder), stage) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, port = tmp_path_factory.mktemp("signals"), free_port()
    environment = {**token_environment(folder), "PYTHONPATH": str(ROOT), "FMWSSS_LEASE_S": "6"}
    with serve_head([f"--port={port}", "--num-cpus=4", "--include-dashboard=false"], environment):
        time.sleep(10)
        run = Run(Folder(str(folder / "run")))
        yield Place(run, folder / "log", environment, f"127.0.0.1:{port}")


def test_every_declaration_is_among_them() -> None:
    for declared in DECLARED:
        assert any(f"{name}/".startswith(f"{declared.name}/") for name in STAGES), declared.name


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_a_driver_in_this_stage(place: Place, stage: str, number: signal.Signals, code: int) -> None:
    for _ in range(NUM_TRIES):
        own, local = place.run.within(stage)
        own.reset(local)
        driver = place.start()
        try:
            while driver.poll() is None and not place.is_at(stage):
                time.sleep(0.02)
            driver.send_signal(number)
            driver.wait(600)
        finally:
            end(driver)
        if driver.returncode:
            break
    told = place.log.read_text()
    assert driver.returncode == code, told
    assert told.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in told
    assert read_claims(place.run.folder) == {}


@pytest.mark.timeout(1200)
def test_the_same_command_goes_on_to_the_end(place: Place) -> None:
    assert place.start().wait(1000) == 0, place.log.read_text()
    complete = [stage.name for stage in ASKED if stage.unit is None or receipt_of(Run(place.run.folder), stage.name)]
    assert complete == STAGES
    assert place.run.failures().num_rows == 0
