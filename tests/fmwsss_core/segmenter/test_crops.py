"""Crops: a function of their generator; labels stay on their pixels; the category cap and the padding."""

from __future__ import annotations

import numpy as np
import torch

from fmwsss.core.segmenter.crop_settings import CropSettings
from fmwsss.core.segmenter.crops import draw_crop, paste_class, scaled_size

PLAIN = CropSettings(crop_px=64, short_side_px=96, scale_range=(0.5, 2.0), distort=False)


def image_of(labels: np.ndarray) -> np.ndarray:
    """A picture that shows its own labels, 60 grey levels apart."""
    return np.repeat((labels * 60).astype(np.uint8)[..., None], 3, axis=2)


def halves() -> np.ndarray:
    labels = np.zeros((90, 120), np.uint8)
    labels[:, 60:], labels[:30, :40] = 1, 2
    return labels


def test_the_same_generator_gives_the_same_crop_and_another_gives_another():
    labels = halves()
    settings = CropSettings(crop_px=64, short_side_px=96)
    first, again, other = (
        draw_crop(image_of(labels), labels, None, np.random.default_rng(seed), settings) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_labels_and_weights_stay_on_their_pixels():
    labels = halves()
    weights = np.where(labels == 1, 200, 100).astype(np.uint8)
    for seed in range(12):
        image, target, weight = draw_crop(image_of(labels), labels, weights, np.random.default_rng(seed), PLAIN)
        assert image.shape == (3, 64, 64)
        assert target.shape == (64, 64)
        assert weight is not None
        real = target != 255
        shown = (image[0].float() / 60).round().to(torch.uint8)
        # Interpolation mixes neighbours at an edge, nowhere else.
        assert (shown[real] == target[real]).float().mean() > 0.93
        expected = torch.where(target == 1, 200 / 255, 100 / 255)
        assert torch.allclose(weight[real], expected[real])
        assert torch.all(weight[~real] == 0)


def test_what_lies_beyond_a_small_image_is_255():
    labels = np.ones((20, 30), np.uint8)
    settings = CropSettings(crop_px=64, short_side_px=20, scale_range=(1.0, 1.0), distort=False, flip=False)
    image, target, _ = draw_crop(image_of(labels), labels, None, np.random.default_rng(0), settings)
    assert torch.all(target[:20, :30] == 1)
    assert (target == 255).sum() == 64 * 64 - 20 * 30
    assert image[:, 40, 40].tolist() == [124, 116, 104]


def test_no_class_fills_a_crop_where_that_can_be_helped():
    labels = np.zeros((96, 400), np.uint8)
    labels[:, 180:220] = 1
    settings = CropSettings(crop_px=48, short_side_px=96, scale_range=(1.0, 1.0), distort=False)

    def share(cap: float) -> float:
        own = CropSettings(**{**settings.__dict__, "category_cap": cap})
        crops = [draw_crop(image_of(labels), labels, None, np.random.default_rng(s), own)[1] for s in range(40)]
        return sum(float((crop == 0).float().mean() >= 0.75) for crop in crops) / len(crops)

    assert share(1.0) > 0.6
    assert share(0.75) < share(1.0) - 0.3


def test_panoramas_are_scaled_by_their_long_side():
    assert scaled_size(300, 400, 600.0) == [600, 800]
    assert scaled_size(100, 1000, 600.0) == [240, 2400]


def test_distortion_changes_colours_but_not_labels():
    labels = halves()
    plain = CropSettings(crop_px=64, short_side_px=96, distort=False)
    wild = CropSettings(crop_px=64, short_side_px=96, distort=True, flip=False)
    plain = CropSettings(**{**plain.__dict__, "flip": False})
    changed = 0
    for seed in range(8):
        before = draw_crop(image_of(labels), labels, None, np.random.default_rng(seed), plain)
        after = draw_crop(image_of(labels), labels, None, np.random.default_rng(seed), wild)
        assert torch.equal(before[1], after[1])
        changed += not torch.equal(before[0], after[0])
    assert changed >= 5


def test_a_pasted_class_brings_its_pixels_and_weights_and_nothing_else():
    generator, below, above = np.random.default_rng(0), (10, 20), (30, 40, 50)
    sides, pasted, moved = 32, [], set()
    for seed in range(25):
        crops = []
        for classes in (below, above):
            labels = torch.from_numpy(generator.choice(np.array([0, *classes, 255], np.uint8), (sides, sides)))
            crops.append((labels.repeat(3, 1, 1), labels, labels.float() / 255))
        crop, giver = crops
        image, labels, weights = paste_class(crop, giver, np.random.default_rng(seed))
        assert weights is not None
        # Every pixel shows its own label, and only one class has come.
        assert torch.equal(image, labels.repeat(3, 1, 1))
        assert torch.equal(weights, labels.float() / 255)
        (chosen,) = set(labels.unique().tolist()) - {0, *below, 255}
        assert torch.equal(labels[labels != chosen], crop[1][labels != chosen])
        pasted.append(chosen)
        ways = []
        for number, shown in enumerate((giver[1], giver[1].flip(-1))):
            for down in range(-12, 13):
                for right in range(-12, 13):
                    to = (slice(max(0, down), sides + min(0, down)), slice(max(0, right), sides + min(0, right)))
                    come = (slice(max(0, -down), sides + min(0, -down)), slice(max(0, -right), sides + min(0, -right)))
                    expected = crop[1].clone()
                    expected[to] = torch.where(shown[come] == chosen, shown[come], expected[to])
                    if torch.equal(labels, expected):
                        ways.append((number, down, right))
        assert len(ways) == 1, "moved as a whole, mirrored or not"
        moved.add(ways[0])
    assert set(pasted) == set(above)
    assert {way[0] for way in moved} == {0, 1}
    assert len(moved) > 20


def test_where_there_is_nothing_to_paste_the_crop_stays():
    empty = (
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.tensor([[0, 255]] * 8, dtype=torch.uint8).repeat(1, 4),
        None,
    )
    crop = (torch.ones(3, 8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.uint8), None)
    assert paste_class(crop, empty, np.random.default_rng(0)) is crop
    image, labels, weights = paste_class(empty, crop, np.random.default_rng(0))
    assert weights is None
    assert torch.equal(labels == 1, image[0] == 1)
