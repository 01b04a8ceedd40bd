from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from tests.support.seeded_run import make_run
from tests.support.viewer import Viewer, viewing

HARMFUL = "<img src=x onerror=alert({:d})>&\"'"  # an id that would be code if it were taken for markup
NUM_IMAGES = 60


@pytest.fixture(scope="package")
def run_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = Folder(str(tmp_path_factory.mktemp("viewed") / "run"))
    return make_run(folder, NUM_IMAGES, 7, failing=2).folder.url


@pytest.fixture
def own_run_url(tmp_path: Path) -> str:
    """A run that a test may change."""
    return make_run(Folder(str(tmp_path / "run")), 20, 7).folder.url


@pytest.fixture(scope="package")
def viewer(run_url: str) -> Iterator[Viewer]:
    with viewing(run_url) as own:
        yield own
