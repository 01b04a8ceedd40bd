"""The model of foreground superpixels: its optimum against the equation, its folds, its effect on a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmwsss.core.seeds.foreground import (
    FoldModels,
    evenly,
    fit_folds,
    fit_foreground,
    fold_of,
    foreground_margins,
    pooled_tokens,
    rescore,
)
from fmwsss.core.seeds.sams import seed_image, superpixel_scores
from tests.fmwsss_core.seeds.test_sams import halves, superpixels_of
from tests.references import foreground as reference


@pytest.mark.parametrize("size", [(32, 48), (37, 53), (5, 4)])
def test_tokens_are_pooled_by_the_share_of_each_patch(size: tuple[int, int]):
    generator = np.random.default_rng(0)
    masks = generator.random((3, *size)) > 0.6
    tokens = generator.normal(size=(5, 4, 7)).astype(np.float32)
    share = torch.nn.functional.adaptive_avg_pool2d(torch.as_tensor(masks).double()[None], (5, 4))[0].flatten(1)
    expected = share @ torch.as_tensor(tokens).double().reshape(20, 7) / share.sum(dim=1, keepdim=True)
    np.testing.assert_allclose(pooled_tokens(superpixels_of(masks, [0, 1, 2]), tokens), expected.numpy(), rtol=1e-9)


def looks(num_rows: int = 120, num_features: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Features whose first direction decides, correlated, and margins that say so with mistakes."""
    generator = np.random.default_rng(3)
    features = generator.normal(size=(num_rows, num_features)) @ generator.normal(size=(num_features, num_features)) + 5
    truth = features[:, 0] - features[:, 1]
    margins = np.tanh(truth - np.median(truth)) + generator.normal(scale=0.7, size=num_rows)
    return features.astype(np.float32), margins


@pytest.mark.parametrize("num_components", [4, 64])
def test_the_fit_is_the_minimum_of_the_equation(num_components: int):
    features, margins = looks()
    model = fit_foreground(features, margins, penalty=2.0, num_components=num_components)
    components = reference.components(features.astype(np.float64), num_components)
    # The weights of the components, from the logits that the model gives.
    design = np.c_[components, np.ones(len(components))]
    found, *_ = np.linalg.lstsq(design, model.logits(features), rcond=None)
    np.testing.assert_allclose(design @ found, model.logits(features), atol=1e-5)
    best = reference.loss(found[:-1], found[-1], components, margins, 2.0)
    for number in range(len(found)):
        for step in (-1e-2, 1e-2):
            other = found.copy()
            other[number] += step
            assert reference.loss(other[:-1], other[-1], components, margins, 2.0) > best


def test_the_decision_is_looks_and_map_in_units_of_their_deviations():
    features, margins = looks()
    model = fit_foreground(features, margins)
    logits = model.logits(features)
    np.testing.assert_allclose(model.decide(features, margins), margins / margins.std() + logits / logits.std())


def test_looks_mend_what_single_maps_get_wrong():
    features, noisy = looks(600)
    truth = features[:, 0] - features[:, 1]
    truth = truth > np.median(truth)
    fold = np.arange(600) % 5
    models = fit_folds(features, noisy, fold)
    own = [models.models[k] for k in fold]
    decided = np.array([model.decide(features[[i]], noisy[[i]])[0] > 0 for i, model in enumerate(own)])
    assert (decided == truth).mean() > (np.asarray(noisy > 0) == truth).mean() + 0.05


def test_no_superpixel_is_judged_by_its_own_seed():
    features, margins = looks()
    fold = np.arange(len(features)) % 5
    before = fit_folds(features, margins, fold)
    changed = np.where(fold == 2, -margins, margins)
    after = fit_folds(features, changed, fold)
    np.testing.assert_array_equal(before.models[2].weight, after.models[2].weight)
    assert not np.array_equal(before.models[1].weight, after.models[1].weight)


def test_folds_are_of_image_ids_and_of_nothing_else():
    ids = [f"2007_{number:06d}" for number in range(1000)]
    folds = fold_of(ids)
    assert np.bincount(folds).min() > 150
    np.testing.assert_array_equal(fold_of(ids[::-1])[::-1], folds)
    assert fold_of(ids[7:8])[0] == folds[7]


def test_an_image_is_judged_by_the_model_of_its_fold():
    features, margins = looks()
    models = fit_folds(features, margins, np.arange(len(features)) % 5)
    for name in "abcdef":
        (fold,) = fold_of([name])
        expected = models.models[fold].decide(features[:9], margins[:9])
        np.testing.assert_array_equal(models.decide(name, features[:9], margins[:9]), expected)


def test_models_come_back_from_their_file():
    features, margins = looks()
    models = fit_folds(features, margins, np.arange(len(features)) % 5)
    data = models.to_bytes()
    again = FoldModels.from_bytes(data)
    assert again.to_bytes() == data
    np.testing.assert_array_equal(again.decide("a", features, margins), models.decide("a", features, margins))
    with pytest.raises(ValueError, match="no model of foreground"):
        FoldModels.from_bytes(b"something else")


def test_where_the_others_teach_nothing_the_maps_decide_alone():
    features, margins = looks()
    models = fit_folds(features, np.abs(margins), np.zeros(len(features), np.int64))
    assert models.is_fitted == (False,) * 5
    np.testing.assert_array_equal(models.decide("a", features, margins), margins)
    one = fit_folds(features, margins, np.zeros(len(features), np.int64))  # all images in one fold
    assert one.is_fitted == (False, True, True, True, True)


def test_many_superpixels_are_thinned_evenly_by_image():
    assert evenly([10] * 7, 70) == list(range(7))
    assert evenly([10] * 7, 69) == [0, 2, 4, 6]
    assert evenly([10] * 7, 30) == [0, 3, 6]


def test_seeds_of_one_kind_teach_nothing_and_say_so():
    features, margins = looks()
    with pytest.raises(ValueError, match="all 120 superpixels are foreground"):
        fit_foreground(features, np.abs(margins) + 0.1)
    with pytest.raises(ValueError, match="are background"):
        fit_foreground(features, -np.abs(margins))


def test_margins_are_best_class_minus_background():
    scores = np.array([[0.2, 0.7, 0.1], [0.9, 0.3, 0.4]], dtype=np.float32)
    np.testing.assert_allclose(foreground_margins(scores), [0.5, -0.5], atol=1e-7)
    np.testing.assert_allclose(foreground_margins(scores[:, :1]), [-0.2, -0.9], atol=1e-7)


def test_rescoring_keeps_the_class_and_decides_the_background():
    scores = np.array([[0.9, 0.3, 0.4], [0.1, 0.8, 0.2], [0.5, 0.0, 0.0]], dtype=np.float32)
    new = rescore(scores, np.array([2.0, -1.0, 3.0]))
    assert new.argmax(axis=1).tolist() == [2, 0, 0]  # a class whose map is 0 never wins
    np.testing.assert_allclose(new[0], [1 / (1 + np.e**2), 0.75 / (1 + np.e**-2), 1 / (1 + np.e**-2)], rtol=1e-6)


def test_a_seed_follows_the_decision():
    masks = halves()
    maps = np.array([[[1.0, 0.0]]], dtype=np.float32)
    superpixels = superpixels_of(masks, [2] * len(masks))
    plain = seed_image(superpixels, maps, [7], alpha=0.6)
    turned = seed_image(superpixels, maps, [7], alpha=0.6, foreground=np.full(len(masks), -1.0))
    kept = seed_image(superpixels, maps, [7], alpha=0.6, foreground=np.where(plain.superpixel_class > 0, 1.0, -1.0))
    assert not turned.labels.any()
    np.testing.assert_array_equal(kept.labels, plain.labels)


def test_scores_without_a_seed_are_those_of_the_seed():
    masks = halves()
    maps = np.random.default_rng(0).random((2, 4, 5)).astype(np.float32)
    superpixels = superpixels_of(masks, [2] * len(masks))
    expected = seed_image(superpixels, maps, [3, 7], alpha=0.4).scores
    np.testing.assert_array_equal(superpixel_scores(superpixels, maps, 0.4), expected)
