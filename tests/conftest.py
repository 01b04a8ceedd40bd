"""What every test needs: shapes checked at run time, and the folder of real photographs where it is there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.support.s3_server import fresh_s3 as fresh_s3
from tests.support.s3_server import s3_url as s3_url

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Ray's workers would stand behind everything else that the machine does.
os.environ.setdefault("RAY_worker_niceness", "0")

# A machine with a card may not have it.
if importlib.util.find_spec("beartype") is not None:
    install_import_hook("fmwsss.core", "beartype.beartype")

settings.register_profile("shared", deadline=None)  # a machine may be busy with other work
settings.load_profile("shared")

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real photographs and weights; the test is skipped where it is absent."""
    if not (REAL / "README.md").exists():
        pytest.skip("the folder of real photographs is absent")
    return REAL


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of a few scenes, made by the command on this machine; what it printed is beside it, in `stdout`."""
    from tests.support.fault_injection import DEMO, ROOT, SMALL  # after the hook above: it imports fmwsss.core

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, "-m", "fmwsss.jobs", "run", DEMO, f"run={run}", *SMALL]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000)
    assert result.returncode == 0, result.stderr
    (run.parent / "stdout").write_text(result.stdout)
    return str(run)
