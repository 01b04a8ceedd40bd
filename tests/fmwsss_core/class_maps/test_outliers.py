"""Local outliers against loops and against scikit-learn, and their mending against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmwsss.core.class_maps.outliers import local_outliers, mend
from tests.references import patch_maps as reference

torch.set_num_threads(1)


def _tokens(num_tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, num_tokens, 6, generator=generator, dtype=torch.float64)
    tokens[:, ::17] *= 9
    return tokens


@pytest.mark.parametrize(
    ("num_tokens", "num_neighbours", "contamination"), [(60, 30, 0.05), (60, 4, 0.2), (7, 30, 0.3)]
)
def test_outliers_against_loops(num_tokens: int, num_neighbours: int, contamination: float):
    tokens = _tokens(num_tokens)
    found = local_outliers(tokens, num_neighbours, contamination)
    for own, expected in zip(found, tokens.numpy(), strict=True):
        np.testing.assert_array_equal(own, reference.lof_outliers(expected, num_neighbours, contamination))
    assert found.any(dim=1).all()


def test_outliers_are_those_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    tokens = _tokens(200, seed=3)
    found = local_outliers(tokens)
    for own, image in zip(found, tokens.numpy(), strict=True):
        theirs = neighbors.LocalOutlierFactor(n_neighbors=30, contamination=0.05).fit_predict(image)
        np.testing.assert_array_equal(own.numpy(), theirs == -1)


def test_one_token_has_nothing_to_stand_out_from():
    assert not local_outliers(_tokens(1)).any()


@pytest.mark.parametrize("grid", [(5, 4), (1, 20), (20, 1)])
def test_mending_against_loops(grid: tuple[int, int]):
    tokens = _tokens(20)
    is_outlier = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    is_outlier[1] = True  # without a neighbour that is none, a token stays
    found = mend(tokens, is_outlier, grid)
    for own, image, outliers in zip(found, tokens, is_outlier, strict=True):
        np.testing.assert_allclose(own, reference.mend(image.numpy(), outliers.numpy(), grid), rtol=1e-12)
    torch.testing.assert_close(found[1], tokens[1], rtol=0, atol=0)
