"""requirements.txt has the versions of constraints.txt, with hashes, and all that an installation needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MORE = ("segmenter", "s3")  # the extras of `make demo`
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(text: str) -> set[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    found = [Requirement(line.rstrip("\\ ")) for line in lines]
    return {(canonicalize_name(each.name), str(each.specifier)) for each in found}


@pytest.fixture(scope="module")
def locked() -> str:
    return (ROOT / "requirements.txt").read_text()


def test_every_version_is_the_one_of_the_constraints(locked: str) -> None:
    allowed = pins((ROOT / "constraints.txt").read_text())
    assert pins(locked) - allowed == set(), "`make lock` writes requirements.txt again"
    assert all(version.startswith("==") for _, version in pins(locked))


def test_every_entry_has_hashes_and_no_address(locked: str) -> None:
    entries = re.split(r"\n(?! )", locked.strip())
    assert len(entries) >= len(pins(locked))
    for entry in entries:
        first, *hashes = entry.split("\\\n")
        assert hashes, f"{first} has no hash"
        assert all(HASH.fullmatch(line.strip()) for line in hashes), first
    assert "://" not in locked


def test_nothing_that_an_installation_needs_is_missing(locked: str) -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(name for extra in MORE for name in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, needed):
        name = canonicalize_name(requirement.name)
        versions = [version.removeprefix("==") for each, version in pins(locked) if each == name]
        assert versions, f"{name} is missing: `make lock` writes requirements.txt again"
        assert all(map(requirement.specifier.contains, versions)), f"{name}: {versions}, and not {requirement}"
