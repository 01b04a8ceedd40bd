"""Every key of the run file is described, and what the core has a default for is not written twice."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fmwsss.core.segmenter.crop_settings import CropSettings
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.jobs.config.base import Section
from fmwsss.jobs.config.models import ProposeSection
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.segmenter import SegmenterSection


def sections_below(section: type[Section]) -> dict[str, type[Section]]:
    found = {below.__name__: below for below in section.__subclasses__()}
    return found | {name: deep for below in found.values() for name, deep in sections_below(below).items()}


SECTIONS = sections_below(Section)
FOLDER = Path(__file__).parents[3] / "jobs" / "config"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_is_described(name: str) -> None:
    section = SECTIONS[name]
    assert section.__doc__
    undescribed = [key for key, field in section.model_fields.items() if not field.description]
    assert not undescribed


@pytest.mark.parametrize(
    ("section", "settings"), [(ProposeSection, ProposalSettings), (SegmenterSection, CropSettings)]
)
def test_defaults_and_descriptions_of_the_core_are_those_of_the_run_file(
    section: type[Section], settings: type
) -> None:
    for field in fields(settings):
        assert section.model_fields[field.name].default == field.default
        assert str(section.model_fields[field.name].description)[1:6] in str(settings.__doc__)


def test_no_description_is_a_comment() -> None:
    """A comment behind a key is read by nobody but who reads the code."""
    for path in FOLDER.glob("*.py"):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and node.col_offset == 4:
                assert "  # " not in lines[node.lineno - 1], f"{path.name}:{node.lineno}"


def test_reading_the_schema_needs_neither_torch_nor_scipy() -> None:
    code = "import sys, fmwsss.jobs.config.run\nsys.exit(len({'torch', 'scipy', 'ray'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[1])


def test_numbers_that_cannot_go_together_are_told_with_the_section() -> None:
    with pytest.raises(ValueError, match="leaves no point for crop layer 3"):
        ProposeSection(points_per_side=4, crop_layers=3)
    assert RunConfig.model_fields["propose"].default == ProposeSection()
