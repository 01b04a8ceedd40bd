"""Ctrl-C and SIGTERM end a driver wherever it is: a line, 130 or 143, and its claim goes; also after Ray Train."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fmwsss.cluster.storage.driver_lock import read_claims
from fmwsss.cluster.storage.folder import Folder

ROOT = Path(__file__).parents[3]
DRIVER = """
import sys, time, threading
from fmwsss.cluster.execution.session import session
from fmwsss.cluster.execution.train_job import plan_training, train
from fmwsss.cluster.storage.driver_lock import hold
from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.cli import _told_in_lines

def loop(settings):
    if settings["path"]:
        open(settings["path"], "w").close()
        time.sleep(600)

run, where = Folder(sys.argv[1]), sys.argv[2]
with _told_in_lines(), hold(run, lambda: None) as claim:
    if where == "before Ray":
        print("there", flush=True); time.sleep(600)
    with session(num_cpus=2):
        if where == "in Ray":
            print("there", flush=True); time.sleep(600)
        path = run.url + "/training" if where == "in training" else ""
        if path:
            import os
            def tell():
                while not os.path.exists(path): time.sleep(0.1)
                print("there", flush=True)
            threading.Thread(target=tell, daemon=True).start()
        train(loop, {"path": path}, plan_training(1, None), run.child("scratch"))
        print("there", flush=True); time.sleep(600)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("where", "number", "code"),
    [
        ("before Ray", signal.SIGTERM, 143),
        ("in Ray", signal.SIGINT, 130),
        ("in training", signal.SIGTERM, 143),
        ("after training", signal.SIGINT, 130),
        pytest.param("before Ray", signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param("in Ray", signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param("in training", signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param("after training", signal.SIGTERM, 143, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_a_driver_and_its_claim_goes(
    tmp_path: Path, where: str, number: signal.Signals, code: int
) -> None:
    run = Folder(str(tmp_path / "run"))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, run.url, where],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert driver.stdout
    try:
        assert driver.stdout.readline() == "there\n"
        assert len(read_claims(run)) == 1
        driver.send_signal(number)
        _, told = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == code, told
    assert told.splitlines()[-1] == "stopped; the same command goes on from here"
    assert read_claims(run) == {}
