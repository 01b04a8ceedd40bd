"""The source of class maps in a run file: its kinds, its defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmwsss.core.class_maps.sources import GradCam, Mixture, PatchText, Windows, build
from fmwsss.jobs.config.class_maps import PatchSource
from fmwsss.jobs.config.load import ConfigError, load_config

DEMO = str(Path(__file__).parents[3] / "configs" / "demo.yaml")


def _built(*overrides: str) -> Any:
    return build(load_config(DEMO, list(overrides)).seeds.fine.source.model_dump())


def test_a_run_file_builds_the_sources_of_the_method():
    assert _built() == GradCam()
    assert _built("seeds.fine.source=patch") == PatchText()
    assert PatchSource(kind="patch").model_dump().keys() - {"kind"} == {
        *vars(PatchText().embedding), "softmax_scale", "with_absent", "windows"
    }  # fmt: skip
    windows = _built("seeds.fine.source={kind: patch, attention: identity, windows: {side_patches: 7}}")
    assert windows.embedding.attention == "identity"
    assert windows.windows == Windows(side_patches=7, stride_patches=7)
    given = "{source: {kind: given, path: x, format: npy}, weight: 5}"
    mixture = _built(f"seeds.fine.source={{kind: mixture, parts: [{given}, {{source: patch}}, {{source: gradcam}}]}}")
    assert mixture == Mixture((PatchText(), GradCam()), (1.0, 1.0, 5.0))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seeds.fine.source=pach", "'seeds.fine.source'"),
        ("seeds.fine.source={kind: patch, atention: identity}", "did you mean 'seeds.fine.source.attention'"),
        ("seeds.fine.source={kind: patch, with_absent: true}", "needs a `softmax_scale`"),
        ("seeds.fine.source={kind: patch, windows: {side_patches: 3, stride_patches: 4}}", "in no window"),
        ("seeds.fine.source={kind: patch, summed_depths: [0.8, 0.3]}", "[first, last]"),
        (
            "seeds.fine={source: {kind: given, path: x, format: npy}, maps: cam+caa, alpha: 1.0, box_threshold: 0.4}",
            "write `maps: cam`",
        ),
        ("seeds.fine.source={kind: mixture, parts: [{source: patch}]}", "seeds.fine.source.parts"),
        ("seeds.fine.templates=[a photo]", "one {} where the name goes"),
    ],
)
def test_a_mistake_is_a_line_that_names_the_key(override: str, words: str):
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, [override])
    assert words in str(caught.value)
