"""The examples of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fmwsss.jobs.commands import plan_checks as checks
from fmwsss.jobs.config.load import load_config
from tests.support.image_files import png

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_example_of_the_public_api_runs():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    seed, scene = names["seed"], names["draw_scene"](5)
    assert seed.labels.shape == scene.truth.shape
    assert seed.missing == ()
    found, true = seed.labels > 0, scene.truth > 0
    assert (found & true).sum() / (found | true).sum() > 0.4


def test_the_run_file_of_the_readme_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table and the run file as they stand, and images of those names: everything but the weights is checked."""
    section = (ROOT / "README.md").read_text().partition("## On your own images")[2]
    table = re.findall(r"^    (image_id,classes\n(?:    .*\n)+)", section, re.MULTILINE)[0].replace("    ", "")
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(table)
    Path("photos").mkdir()
    for line in table.splitlines()[1:]:
        (Path("photos") / f"{line.partition(',')[0]}.jpg").write_bytes(png(np.zeros((40, 60, 3), np.uint8)))
    Path("mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0])
    config = load_config("mine.yaml")
    sources: list = []
    assert checks.images(config, sources) == "2, of which 0 can't be used"
    assert checks.labels(config, config.resolve_vocabulary(), sources) == "3 of 3 classes occur"
    assert checks.pixels(config, config.resolve_vocabulary(), sources).startswith("2 of 2 of a sample can be decoded")


def test_the_tour_names_every_room_and_only_modules_that_are_there() -> None:
    text = (DOCS / "architecture.md").read_text()
    found = dict(re.findall(r"^\| `((?:core|cluster|jobs)\.\w+)` \| (.*) \|$", text, re.MULTILINE))
    folders = {"core": ROOT / "fmwsss_core", "cluster": ROOT / "cluster", "jobs": ROOT / "jobs"}
    rooms = {
        f"{package}.{place.name}"
        for package, folder in folders.items()
        for place in folder.iterdir()
        if (place / "__init__.py").exists()
    }
    assert set(found) == rooms
    for name, about in found.items():
        package, _, room = name.partition(".")
        # Stages are named too, with what they make.
        for module in re.findall(r"`(\w+)`(?=[:,;)]| with| and| \(|$)", about):
            here = folders[package] / room
            is_there = (here / f"{module}.py").exists() or (here / module).is_dir()
            assert is_there or module in ("transformers", "images", "superpixels", "features", "segmenter", "plan",
                                          "status", "failures", "verify"), f"{name}: {module}"  # fmt: skip
