"""What editors and readers are told of a run file is what the program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fmwsss.jobs.config.schema import editor_schema, markdown

ROOT = Path(__file__).parents[3]
RUN_FILES = sorted((ROOT / "configs").glob("*.yaml"))


def mistakes(raw: Any) -> list[str]:
    schema = editor_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(raw)]


def test_the_page_is_current() -> None:
    command = "python -m fmwsss.jobs schema --markdown > docs/run_file.md"
    assert (ROOT / "docs" / "run_file.md").read_text(encoding="utf-8") == markdown() + "\n", f"write it anew: {command}"


@pytest.mark.parametrize("path", RUN_FILES, ids=[path.stem for path in RUN_FILES])
def test_editors_take_our_run_files(path: Path) -> None:
    assert not mistakes(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "{base: voc12, dataset: {split: val}}",
        "{base: [demo, voc12.yaml], max_failures: 1 %}",
        "vocabulary: {classes: {0: horse, 1: car}}",
    ],
)
def test_editors_take_parts_of_sections(text: str) -> None:
    assert not mistakes(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    ["runn: x", "{propose: {point_per_side: 3}}", "dataset: {kind: toy, num_image: 3}", "seeds: {fine: {alpha: 0}}"],
)
def test_editors_underline_what_is_refused(text: str) -> None:
    assert mistakes(yaml.safe_load(text))


def test_every_key_has_a_line_and_every_section_a_table() -> None:
    page = markdown()
    for key in ("points_per_side", "first_seed", "rounds", "merge_queries", "checkpoint_every_s"):
        assert page.count(f"\n| `{key}` |") >= 1
    assert "| `occupation_threshold` | number >= 0 <= 1 or null | `0.3` |" in page
    assert "## `seeds.coarse`, `seeds.fine`\n" in page
