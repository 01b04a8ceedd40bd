"""The examples of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


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
