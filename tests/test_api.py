"""What `import fmwsss` gives, and that it costs nothing before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fmwsss

ROOT = Path(__file__).parents[1]


def test_names_are_those_of_the_docs():
    assert fmwsss.load_config("demo").run == "runs/demo"
    assert all(callable(function) for function in (fmwsss.run, fmwsss.plan, fmwsss.status, fmwsss.predict))
    with pytest.raises(AttributeError, match="no attribute 'sedes'"):
        fmwsss.sedes  # noqa: B018


def test_status_of_a_folder_without_a_run_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no run at"):
        fmwsss.status(str(tmp_path))


def test_the_import_needs_neither_ray_nor_torch():
    code = "import sys, fmwsss; fmwsss.load_config('demo'); sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_version_is_told():
    command = [sys.executable, "-m", "fmwsss.jobs", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == f"fmwsss {fmwsss.__version__}\n"
