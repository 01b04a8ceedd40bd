"""Runs in notebooks: seeds that show themselves, and the tutorial as it stands."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fmwsss
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.errors import InputError
from tests.jobs.view.conftest import HARMFUL, NUM_IMAGES
from tests.support.seeded_run import HEIGHT, WIDTH, label_map, make_run

TUTORIAL = Path(__file__).parents[3] / "docs/tutorial.ipynb"


def test_a_seed_shows_itself(run_url: str) -> None:
    run = fmwsss.open(run_url)
    assert (len(run), len(run.seeds), set(run.failures)) == (NUM_IMAGES, NUM_IMAGES - 2, {"img-00000", "img-00001"})
    seed = run.seeds["img-00010"]
    np.testing.assert_array_equal(seed.labels, label_map(10))
    assert (seed.classes, seed.missing, seed.names) == (("cat", "dog", "cow"), ("cow",), {1: "cat", 2: "dog"})
    shown = Image.open(BytesIO(seed._repr_png_()))
    assert shown.size == (2 * WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(shown)[:, :WIDTH], seed.image)
    for image_id in ("img-00000", "img-99999", "../x"):
        with pytest.raises(KeyError):
            run.seeds[image_id]
    assert set(run.coarse) >= set(run.seeds)
    with pytest.raises(InputError, match="no order"):
        run.find(sort="luck")
    found = run.find(class_="cow", sort="id")
    assert found == sorted(own for own in run.seeds if "cow" in run.seeds[own].classes)


def test_a_run_shows_itself_as_text(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / HARMFUL.format(1).replace("/", "")))
    shown = fmwsss.open(make_run(folder, 6, 3).folder.url)._repr_html_()
    assert "<img" not in shown
    assert "&lt;img" in shown
    assert "<td>6</td>" in shown  # all show a cat


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat: Any = pytest.importorskip("nbformat")
    nbclient: Any = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TUTORIAL_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(TUTORIAL.parents[1]))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbclient.NotebookClient(notebook, timeout=800, kernel_name="python3").execute(cwd=str(tmp_path))
    shown = [set(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in kinds for kinds in shown) == 2
    assert any("text/html" in kinds for kinds in shown)
