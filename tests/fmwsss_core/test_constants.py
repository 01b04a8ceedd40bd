"""Constants against a table with sources (docs/method.md), and what only shows where a label map is resized."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.clip.frozen_clip import NUM_ATTENTION_BLOCKS, FrozenClip
from fmwsss.core.prompts import augmentation, defaults
from fmwsss.core.prompts.augmentation import View, draw_view
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.seeds.dense_crf import CrfSettings
from fmwsss.core.segmenter import crops, deeplab
from fmwsss.core.segmenter.crops import CropSettings, draw_crop
from fmwsss.core.superpixels import postprocess, sam
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.postprocess import Detections, ProposalSettings, finish, pack_masks
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY, draw_scene
from fmwsss.core.vocabularies import COCO14, VOC12
from fmwsss.core.vocabulary import HANDMADE_TEMPLATE

CONSTANTS = [
    (HANDMADE_TEMPLATE, "a clean origami {}.", "CLIP-ES; M1"),
    (NUM_ATTENTION_BLOCKS, 8, "CLIP-ES: the last 8 of 12; M2.2"),
    (defaults.NUM_CONTEXT, 16, "P; M3"),
    (defaults.INIT_STD, 0.02, "CoOp; M3"),
    (defaults.NUM_BACKGROUNDS, 25, "P; M3"),
    (augmentation.JITTER_PROBABILITY, 0.5, "A; M3"),
    (augmentation.FLIP_PROBABILITY, 0.5, "A; M3"),
    (CrfSettings().num_iterations, 10, "CLIP-ES; M5.4"),
    (CrfSettings().smooth_px, 1.0, "CLIP-ES; M5.4"),
    (CrfSettings().smooth_weight, 3.0, "CLIP-ES; M5.4"),
    (CrfSettings().bilateral_px, 67.0, "CLIP-ES; M5.4"),
    (CrfSettings().bilateral_rgb, 3.0, "CLIP-ES; M5.4"),
    (CrfSettings().bilateral_weight, 4.0, "CLIP-ES; M5.4"),
    (postprocess.WHOLE, 2, "segment-anything's third mask; M5.1"),
    (postprocess.UNTOUCHED_SCORE, 0.5, "ours: below `whole_priority`, above 0; M5.1"),
    (sam._CROP_OVERLAP, 512 / 1500, "segment-anything; M5.1"),
    (ProposalSettings().points_per_side, 32, "A; M5.1"),
    (ProposalSettings().predicted_iou_threshold, 0.86, "A; M5.1"),
    (ProposalSettings().stability_threshold, 0.92, "A; M5.1"),
    (ProposalSettings().stability_offset, 1.0, "A; M5.1"),
    (ProposalSettings().box_nms_threshold, 0.7, "A; M5.1"),
    (ProposalSettings().crop_downscale, 2, "A; M5.1"),
    (ProposalSettings().min_region_area_px, 100, "A; M5.1"),
    (ProposalSettings().whole_bonus, 0.1, "P: .76 for wholes; M5.1"),
    (ProposalSettings().whole_priority, 1.0, "A; M5.1"),
    (ProposalSettings().occupation_threshold, 0.3, "P: t_r; M5.1"),
    (deeplab.AUXILIARY_WEIGHT, 0.2, "A; M7"),
    (deeplab.RATES, (12, 24, 36), "A: 1, 12, 24, 36; M7"),
    (deeplab.RESNETS["resnet101"], (3, 4, 23, 3), "He et al.; M7"),
    (crops.NUM_TRIES, 10, "mmsegmentation; M7"),
    (crops.FLIP_PROBABILITY, 0.5, "mmsegmentation; M7"),
    (crops.MAX_ASPECT, 4, "(2048, 512); M7"),
    (asdict(CropSettings())["scale_range"], (0.5, 2.0), "mmsegmentation; M7"),
    (asdict(CropSettings())["category_cap"], 0.75, "mmsegmentation; M7"),
]


@pytest.mark.parametrize(("value", "expected", "source"), CONSTANTS, ids=[str(n) for n in range(len(CONSTANTS))])
def test_a_constant_is_the_one_of_its_source(value: object, expected: object, source: str):
    assert value == expected, source


def test_every_word_of_the_vocabularies():
    """M1: the names of the data sets are the prompts, but for these."""
    changed = {
        name: {own: prompt for own, prompt in zip(words.classes, words.prompts, strict=True) if own != prompt}
        for name, words in (("voc", VOC12), ("coco", COCO14))
    }
    assert changed["voc"] == {
        "bird": "bird avian", "chair": "chair seat", "person": "person with clothes,people,human",
        "tvmonitor": "tvmonitor screen",
    }  # fmt: skip
    assert changed["coco"] == {
        "person": "person with clothes,people,human", "motorcycle": "motorbike", "airplane": "aeroplane",
        "bird": "bird avian", "backpack": "backpack,bag", "umbrella": "umbrella,parasol", "handbag": "handbag,purse",
        "tie": "necktie", "baseball glove": "glove", "spoon": "dessertspoon", "chair": "chair seat", "couch": "sofa",
        "potted plant": "pottedplant", "dining table": "diningtable", "tv": "tvmonitor screen",
        "remote": "remote control", "hair drier": "hairdrier,blowdrier",
    }  # fmt: skip
    words = [
        "ground",
        "land",
        "grass",
        "tree",
        "building",
        "wall",
        "sky",
        "lake",
        "water",
        "river",
        "sea",
        "railway",
        "railroad",
        "keyboard",
        "helmet",
        "cloud",
        "house",
        "mountain",
        "ocean",
        "road",
        "rock",
        "street",
        "valley",
        "bridge",
        "sign",
    ]
    assert list(VOC12.backgrounds) == words
    assert list(COCO14.backgrounds) == [word for word in words if word not in ("keyboard", "sign")]


def test_an_untouched_mask_goes_before_a_cleaned_one_and_after_a_whole_one():
    """M5.1: suppression after the clean-up prefers masks that it left alone, but whole ones more than those."""
    box = np.zeros((20, 20), bool)
    box[:16, :16] = True
    with_island, wider = box.copy(), box.copy()
    with_island[19, 19] = True  # cleaned away; then its box is that of the others
    wider[:16, 16] = True

    def left(levels: list[int], masks: list[np.ndarray]) -> list[int]:
        bits = tuple(pack_masks(np.stack(masks).transpose(0, 2, 1)))
        ones = np.ones(len(masks), np.float32)
        none = np.zeros(len(masks), np.int16)
        found = Detections(20, 20, ((0, 0, 20, 20),), none, np.array(levels, np.int8), ones, ones, bits)
        settings = replace(ProposalSettings(), crop_layers=0, min_region_area_px=10, occupation_threshold=None)
        kept = finish(found, settings)
        assert isinstance(kept, Superpixels)
        return [int(kept.mask(index).sum()) for index in range(len(kept))]

    assert left([1, 1], [with_island, wider]) == [272]
    assert left([1, 1], [wider, with_island]) == [272]
    assert left([2, 1], [with_island, wider]) == [256]
    assert left([1, 2], [wider, with_island]) == [256]


def nearest_exact(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The label under the centre of each pixel of the smaller or larger grid."""
    rows = np.floor((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[rows][:, columns]


def test_labels_are_read_under_the_centres_of_pixels():
    """Not under their corners, as torch's `nearest` reads them: labels would shift by half a pixel."""
    labels = (np.arange(40)[:, None] + 2 * np.arange(60)[None]).astype(np.uint8)
    for height, width in ((20, 30), (27, 41), (80, 120)):
        side = min(height, width)
        seen = View((height, width), 0, 0, side, False, None).of_labels(labels).numpy()
        np.testing.assert_array_equal(seen, nearest_exact(labels, height, width)[:side, :side])
    image = np.zeros((40, 60, 3), np.uint8)
    settings = replace(
        CropSettings(),
        crop_px=64,
        short_side_px=20,
        scale_range=(1.0, 1.0),
        category_cap=1.0,
        flip=False,
        distort=False,
    )
    _, target, weights = draw_crop(image, labels, labels, np.random.default_rng(0), settings)
    np.testing.assert_array_equal(np.asarray(target)[:20, :30], nearest_exact(labels, 20, 30))
    assert weights is not None
    np.testing.assert_allclose(np.asarray(weights)[:20, :30], nearest_exact(labels, 20, 30) / 255, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(60, 200), (200, 60), (100, 150), (37, 41)])
def test_a_view_keeps_the_aspect_ratio(height: int, width: int):
    """M3: the long side is drawn, the short one follows; the crop must fit into it."""
    for seed in range(20):
        view = draw_view(
            height, width, np.random.default_rng(seed), long_side_px=(100, 160), crop_px=48, jitter=False, flip=False
        )
        scale = view.size_px[0] / height
        assert view.size_px[1] == pytest.approx(scale * width, abs=1 + width / height / 2)
        assert min(view.size_px) >= 48
        if min(view.size_px) > 48:
            assert 100 <= max(view.size_px) <= 160


def test_refined_maps_are_normalised():
    """M2.2: what A^2 gives is far from 1; both maps of an image go from 0 to 1."""
    clip, image = FrozenClip(toy_clip(), identity="toy"), draw_scene(2).image
    (found,) = map_classes(clip, [image], [[1, 4, 7]], *handmade_embeddings(clip, TOY), None, 1)
    assert found.refined_cam is not None
    np.testing.assert_allclose(found.refined_cam.max(axis=(1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(found.refined_cam.min(axis=(1, 2)), 0, atol=1e-6)
