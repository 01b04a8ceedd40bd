"""The cache of views: who shares one, and what is said before it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.prompts.encode import demand_space, stages
from fmwsss.jobs.prompts.views import view_of
from fmwsss.jobs.stages import StageError

DEMO = str(Path(__file__).parents[3] / "configs" / "demo.yaml")


def config(*more: str) -> RunConfig:
    return load_config(DEMO, list(more))


def asked(*more: str) -> list[str]:
    return [stage.name for stage in stages(config(*more))]


def test_equal_settings_share_one_cache_and_others_have_their_own() -> None:
    both = ["learn.classification.cache=input", "learn.segmentation.cache=input"]
    assert asked() == []
    assert asked(*both) == ["features/classification"]
    assert asked(both[1]) == ["features/segmentation"]
    for key in ("augment.crop_px=64", "cached_views=2", "cache=product", "precision=bfloat16"):
        assert asked(*both, f"learn.segmentation.{key}") == [
            "features/classification",
            "features/segmentation",
        ], key


def test_a_cache_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    demand_space(Folder(str(tmp_path / "not" / "there" / "yet")), 1, "features/classification")
    demand_space(Folder("s3://bucket/run"), 10**18, "features/classification")
    with pytest.raises(
        StageError, match=r"features/classification takes 1e\+09 GB, and .* has .* left: lower cached_views"
    ):
        demand_space(Folder(str(tmp_path)), 10**18, "features/classification")


def test_views_follow_from_seed_number_and_image_alone() -> None:
    augment = config().learn.classification.augment.model_dump()
    views = {view_of(name, 128, 96, number, seed, augment) for name in "ab" for number in (0, 1) for seed in (0, 1)}
    assert len(views) == 8
    assert view_of("a", 128, 96, 1, 0, augment) in views
