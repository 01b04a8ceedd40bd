"""Scenes: the same for the same seed, and everything they say about themselves is true."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fmwsss.core.toy.world import AWAY_FROM_HOME, HOMES, TOY, Scene, draw_scene

seeds = st.integers(0, 2**31)


@functools.cache
def many_scenes() -> tuple[Scene, ...]:
    return tuple(draw_scene(seed) for seed in range(400))


def test_a_scene_depends_on_its_seed_alone() -> None:
    first = [draw_scene(seed) for seed in range(6)]
    for seed, scene in reversed(list(enumerate(first))):
        again = draw_scene(seed)
        assert np.array_equal(scene.image, again.image)
        assert np.array_equal(scene.levels, again.levels)
    assert not np.array_equal(first[0].image, first[1].image[: first[0].image.shape[0], : first[0].image.shape[1]])


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_truth_and_labels_agree(seed: int) -> None:
    scene = draw_scene(seed)
    height, width = scene.truth.shape
    assert scene.image.shape == (height, width, 3)
    assert max(height, width) == 128
    assert min(height, width) >= 96
    present = {TOY.classes[index - 1] for index in np.unique(scene.truth) if index}
    assert present == set(scene.classes)
    assert 1 <= len(scene.classes) <= 3
    assert set(scene.backgrounds) <= set(TOY.backgrounds)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_sub_parts_lie_in_parts_and_parts_in_wholes(seed: int) -> None:
    scene = draw_scene(seed)
    sub, part, whole = (level.ravel() for level in scene.levels)
    for fine, coarse in ((sub, part), (part, whole)):
        for number in np.unique(fine):
            assert len(np.unique(coarse[fine == number])) == 1
    for number in np.unique(whole):
        assert len(np.unique(scene.truth.ravel()[whole == number])) == 1


def test_objects_have_parts_and_sub_parts() -> None:
    scenes = many_scenes()[:120]
    for index, name in enumerate(TOY.classes, start=1):
        having = [scene for scene in scenes if name in scene.classes]
        assert len(having) >= 5, name
        pieces = [[len(np.unique(level[scene.truth == index])) for level in scene.levels] for scene in having]
        sub, part, whole = np.mean(pieces, axis=0)
        assert sub > part > whole, name


def test_surroundings_go_with_classes_but_not_always() -> None:
    scenes = many_scenes()
    for name, home in HOMES.items():
        alone = [scene for scene in scenes if scene.classes == (name,)]
        share = np.mean([home in scene.backgrounds for scene in alone])
        # Sky and the like are also seen behind what lives elsewhere.
        assert share > 1 - 2 * AWAY_FROM_HOME, name
    assert any(HOMES[name] not in scene.backgrounds for scene in scenes for name in scene.classes)
    without_boat = [scene for scene in scenes if "water" in scene.backgrounds and "boat" not in scene.classes]
    assert without_boat, "water without a boat is what tells the two apart"


def test_objects_are_large_enough_to_be_found() -> None:
    shares = [(scene.truth > 0).mean() for scene in many_scenes()[:200]]
    assert 0.15 < np.mean(shares) < 0.5
    assert np.quantile(shares, 0.05) > 0.08
