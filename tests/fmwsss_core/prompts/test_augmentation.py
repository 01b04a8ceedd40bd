"""Training views: image and label map move together, and a view is a function of its generator alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmwsss.core.prompts.augmentation import View, draw_view


def view(
    image: np.ndarray, labels: np.ndarray | None, generator: np.random.Generator, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    height_px, width_px = image.shape[:2]
    drawn = draw_view(height_px, width_px, generator, **settings)
    return drawn.of_image(image), drawn.of_labels(labels) if labels is not None else None


def ramp(height: int, width: int) -> np.ndarray:
    """An image whose red and green say where a pixel came from."""
    rows, columns = np.mgrid[0:height, 0:width]
    blue = np.full_like(rows, 128)
    return np.stack([255 * rows / height, 255 * columns / width, blue], axis=2).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 1000), st.booleans())
def test_every_view_is_a_full_crop(height: int, width: int, seed: int, jitter: bool) -> None:
    labels = np.full((height, width), 7, np.uint8)
    pixels, target = view(
        ramp(height, width),
        labels,
        np.random.default_rng(seed),
        long_side_px=(40, 80),
        crop_px=32,
        jitter=jitter,
        flip=True,
    )
    assert pixels.shape == (3, 32, 32)
    assert target is not None
    assert torch.all(target == 7), "the crop never leaves the image"


def test_labels_follow_the_image() -> None:
    image = ramp(64, 96)
    labels = (image[..., 1] > 127).astype(np.uint8)  # the right half
    for seed in range(20):
        pixels, target = view(
            image, labels, np.random.default_rng(seed), long_side_px=(60, 120), crop_px=48, jitter=False, flip=True
        )
        assert target is not None
        agree = (pixels[1] > 127) == target.bool()
        assert agree.float().mean() > 0.95


def test_a_view_depends_on_its_generator_alone() -> None:
    image = ramp(50, 70)

    def draw(seed: int) -> torch.Tensor:
        return view(
            image, None, np.random.default_rng(seed), long_side_px=(50, 90), crop_px=40, jitter=True, flip=True
        )[0]

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_without_augmentation_the_view_is_the_image() -> None:
    image = ramp(48, 48)
    pixels, _ = view(image, None, np.random.default_rng(0), long_side_px=(48, 48), crop_px=48, jitter=False, flip=False)
    assert torch.equal(pixels, torch.from_numpy(image).permute(2, 0, 1))


@pytest.mark.parametrize("flip", [True, False])
def test_flip_happens_in_half_of_the_views_or_never(flip: bool) -> None:
    image = ramp(48, 48)
    flipped = 0
    for seed in range(60):
        pixels, _ = view(
            image, None, np.random.default_rng(seed), long_side_px=(48, 48), crop_px=48, jitter=False, flip=flip
        )
        flipped += int(pixels[1, 0, 0] > pixels[1, 0, -1])
    assert 15 < flipped < 45 if flip else flipped == 0


COLOURS = {"long_side_px": (48, 48), "crop_px": 48, "flip": False}


def test_the_authors_draw_each_colour_change_by_itself() -> None:
    """Method M3: each with probability .5, whatever the others do; ours are all four or none."""
    drawn = [draw_view(48, 48, np.random.default_rng(seed), jitter="authors", **COLOURS).jitter for seed in range(400)]
    is_changed = np.array([[value is not None for value in jitter or ()] for jitter in drawn])
    assert np.all(np.abs(is_changed.mean(axis=0) - 0.5) < 0.1)
    patterns = {tuple(row) for row in is_changed.tolist()}
    assert len(patterns) == 16
    for column, (low, high) in enumerate([(-25 / 255, 25 / 255), (0.6, 1.4), (0.5, 1.5), (-25 / 255, 25 / 255)]):
        values = np.array([jitter[column] for jitter in drawn if jitter and jitter[column] is not None], float)
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    together = [draw_view(48, 48, np.random.default_rng(seed), jitter="together", **COLOURS) for seed in range(100)]
    assert {view.jitter is None for view in together} == {True, False}
    assert all(view.jitter is None or None not in view.jitter for view in together)
    assert together == [draw_view(48, 48, np.random.default_rng(seed), jitter=True, **COLOURS) for seed in range(100)]


def test_contrast_of_the_authors_multiplies_the_pixels() -> None:
    image = ramp(48, 48)
    plain = View((48, 48), 0, 0, 48, False, (None, 1.3, None, None), is_contrast_a_factor=True).of_image(image)
    for channel in range(3):
        for row, column in ((0, 0), (17, 40), (47, 47)):
            value = int(image[row, column, channel])
            assert int(plain[channel, row, column]) == min(255, int(np.float32(value) * np.float32(1.3)))
    # Ours moves the pixels away from the mean grey instead.
    ours = View((48, 48), 0, 0, 48, False, (None, 1.3, None, None)).of_image(image)
    grey = float(np.dot(image.reshape(-1, 3), [0.299, 0.587, 0.114]).mean())
    expected = np.clip(1.3 * image[30, 10].astype(float) + (1 - 1.3) * grey, 0, 255)
    np.testing.assert_allclose(ours[:, 30, 10].numpy(), expected, atol=1.5)
