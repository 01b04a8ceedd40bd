"""Dense CRF and SEPL voting against their definitions, and what they do to a picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fmwsss.core.seeds.baselines import crf_seed, threshold_seed, vote, voting_seed
from fmwsss.core.seeds.dense_crf import CrfSettings, dense_crf
from fmwsss.core.seeds.sams import label_map_from_cam
from tests.fmwsss_core.seeds.test_sams import halves, images, superpixels_of
from tests.references import baselines as reference


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A small image of two colours with noise, and noisy probabilities of three labels."""
    generator = np.random.default_rng(seed)
    image = np.full((12, 15, 3), 60, np.uint8)
    image[3:9, 4:12] = 160
    image = (image + generator.integers(0, 12, image.shape)).astype(np.uint8)
    probabilities = generator.random((3, 12, 15)).astype(np.float32) + 0.2
    probabilities[1, 3:9, 4:12] += 0.3
    return image, probabilities / probabilities.sum(axis=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_field_is_that_of_all_pairs(seed: int):
    image, probabilities = picture(seed)
    # Wider in colour than CLIP-ES: with 3 grey levels most pairs of a noisy image have nothing in common.
    settings = CrfSettings(num_iterations=5, smooth_px=1.5, bilateral_px=8.0, bilateral_rgb=20.0)
    ours, exact = dense_crf(image, probabilities, settings), reference.dense_crf(image, probabilities, settings)
    np.testing.assert_allclose(ours.sum(axis=0), 1, atol=1e-5)
    # The lattice approximates the kernels; half of the sharpening is far more than the error allowed.
    assert np.abs(exact - probabilities).max() > 0.5
    assert np.abs(ours - exact).mean() < 0.02
    assert (ours.argmax(axis=0) == exact.argmax(axis=0)).mean() > 0.97


def test_no_iterations_leave_the_probabilities():
    image, probabilities = picture(0)
    np.testing.assert_allclose(dense_crf(image, probabilities, CrfSettings(num_iterations=0)), probabilities, atol=1e-5)


def test_the_crf_snaps_to_an_edge_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 25:] = 200
    cams = np.zeros((1, 5, 6), np.float32)
    cams[0, :, 3:] = 1.0  # the edge of the map is at column 30
    seed = crf_seed(image, superpixels_of(np.zeros((0, 40, 60), bool), []), cams, [7], 1.0)
    assert (seed.labels == np.where(np.arange(60) >= 25, 7, 0)).mean() > 0.99
    assert seed.confidence.min() >= 0.5
    assert seed.missing == ()
    assert seed.scores.shape == (0, 2)


@given(images(), st.data())
def test_votes_are_the_naive_ones(image: tuple[np.ndarray, np.ndarray, np.ndarray], data):
    masks, level, _ = image
    labels = data.draw(hnp.arrays(np.uint8, masks.shape[1:], elements=st.sampled_from([0, 3, 7, 15])))
    voted = vote(superpixels_of(masks, level), labels, [15, 3, 7])
    np.testing.assert_array_equal(voted, reference.vote(masks, labels, [15, 3, 7]))


def test_threshold_and_voting_seeds():
    cams = np.array([[[1.0, 0.9, 0.0, 0.0]]], np.float32)
    superpixels = superpixels_of(halves()[:1], [2])
    by_maps = threshold_seed(superpixels, cams, [4], 1.0)
    np.testing.assert_array_equal(by_maps.labels, label_map_from_cam(cams, [4], 4, 8, 1.0))
    assert by_maps.coverage == 0.5
    voted = voting_seed(superpixels, cams, [4], 1.0)
    np.testing.assert_array_equal(voted.labels, 4 * halves()[0])
