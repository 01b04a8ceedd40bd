"""Training views: image and label map move together, and a view is a function of its generator alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmwsss.core.prompts.augmentation import draw_view


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
