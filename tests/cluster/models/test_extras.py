"""An extra that is not installed is told by its name, on the driver, before the first image."""

from __future__ import annotations

import sys

import pytest

from fmwsss.cluster.models.extras import demand_package
from fmwsss.cluster.models.spec import ModelError
from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.pinned import pin_segmenter


def test_a_package_that_is_there_is_not_told() -> None:
    demand_package("numpy", "segmenter", "segmenter")


def test_a_segmenter_without_transformers_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config("demo_segmenter")
    with pytest.raises(ModelError, match=r"^segmenter needs the package transformers: `pip install 'fmwsss\[segmenter"):
        pin_segmenter(config, {})
    pin_segmenter(load_config("demo"), {})


@pytest.mark.parametrize(
    ("package", "url", "extra"),
    [("s3fs", "s3://a/b", "s3"), ("gcsfs", "gs://a/b", "gcs"), ("adlfs", "abfs://a/b", "azure")],
)
def test_a_storage_without_its_package_names_the_extra(
    package: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # `fsspec.registry` is also the name of a view of this dictionary: of those that an earlier test imported.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    with pytest.raises(StorageError, match=rf"not installed; `pip install 'fmwsss\[{extra}\]'`, on every node"):
        Folder(url).read("x")
