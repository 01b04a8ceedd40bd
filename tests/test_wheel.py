"""The wheel in an environment that has a package `cluster`, from a folder that has a folder `jobs`: one import name."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.fault_injection import SMALL

ROOT = Path(__file__).parents[1]
NOT_OURS = "raise RuntimeError('the package of somebody else was imported')\n"
KEPT_OUT = (".*", "runs", "build", "__pycache__", "*.egg-info", "tests", "docs")

pytestmark = pytest.mark.long


def make_wheel(folder: Path) -> Path:
    """The wheel of this checkout; built from a copy, so that nothing is left in it."""
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*KEPT_OUT))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*command, source], check=True, timeout=300)
    (wheel,) = folder.glob("fmwsss-*.whl")
    return wheel


def make_stranger(folder: Path) -> Path:
    """A wheel of a package `cluster`, as the registry has one."""
    about = "cluster-1.4.1.dist-info"
    wheel = folder / "cluster-1.4.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cluster/__init__.py", NOT_OURS)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: cluster\nVersion: 1.4.1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fmwsss` as a user installs it; what it depends on comes from this environment, and nothing else of it."""
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env/bin/python"
    for wheel in (make_wheel(folder), make_stranger(folder)):
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
        subprocess.run(pip, check=True, timeout=300)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    # A plain folder of the path: the `.pth` of the editable install in it is not obeyed.
    (packages / "what_it_needs.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "env/bin/fmwsss"


@pytest.mark.parametrize("arguments", [["plan", "demo", "--images", "2"], ["run", "demo"]])
def test_other_packages_of_our_folders_names_are_not_imported(command: Path, arguments: list[str], tmp_path: Path):
    for name in ("jobs", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(NOT_OURS)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = subprocess.run(
        [command.with_name("python"), "-c", "import fmwsss.cluster as own; print(own.__path__[0])"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert where.stdout.startswith(str(command.parents[1])), where.stderr
    done = subprocess.run(
        [command, *arguments, f"run={tmp_path}/run", *SMALL], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "somebody else" not in done.stdout + done.stderr
    if arguments[0] == "run":
        assert list((tmp_path / "run/seeds/fine/png").glob("*.png"))
