"""The toy CLIP and SAM on scenes that they were not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from fmwsss_core.clip import FrozenClip
from fmwsss_core.prompts import handmade_embeddings
from fmwsss_core.sam import ProposalSettings, propose
from fmwsss_core.toy.models import WEIGHTS, toy_clip, toy_sam
from fmwsss_core.toy.train import FIRST_TRAINING_SEED
from fmwsss_core.toy.world import TOY, Scene, draw_scene

SETTINGS = ProposalSettings(
    points_per_side=10, predicted_iou_threshold=0.7, stability_threshold=0.7, min_region_area_px=0
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def unseen(count: int) -> list[Scene]:
    assert count < FIRST_TRAINING_SEED
    return [draw_scene(seed) for seed in range(5000, 5000 + count)]


def average_precision(scores: np.ndarray, target: np.ndarray) -> float:
    """Mean precision at the rank of each positive."""
    ranked = target[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def test_the_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 8_000_000


def test_clip_knows_the_classes_of_a_scene() -> None:
    clip = FrozenClip(toy_clip(), identity="toy")
    foreground, background = handmade_embeddings(clip, TOY)
    scenes = unseen(150)
    scores, surroundings = [], []
    for scene in scenes:
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
        features = clip.encode_image(clip.preprocess(image), with_attention=False)
        embedding = clip.image_embedding(features.last_block_input)
        scores.append((embedding @ foreground.T)[0].detach().numpy())
        surroundings.append((embedding @ background.T)[0].detach().numpy())
    for found, words, of in ((scores, TOY.classes, "classes"), (surroundings, TOY.backgrounds, "backgrounds")):
        target = np.array([[word in getattr(scene, of) for word in words] for scene in scenes])
        precisions = [average_precision(np.array(found)[:, i], target[:, i]) for i in range(len(words))]
        assert np.mean(precisions) > 0.95, dict(zip(words, precisions, strict=True))


def best_ious(masks: np.ndarray, scene: Scene, level: int) -> list[float]:
    """For every object (or part) of a scene, the IoU of the mask that fits it best; tiny pieces are left out."""
    numbers = np.unique(scene.levels[level][scene.truth > 0])
    pieces = [scene.levels[level] == number for number in numbers]
    return [
        max((float((mask & piece).sum() / (mask | piece).sum()) for mask in masks), default=0.0)
        for piece in pieces
        if piece.sum() >= 200
    ]


def test_sam_proposes_wholes_and_parts() -> None:
    sam = toy_sam()
    whole_ious, part_ious, levels = [], [], np.zeros(3, int)
    for scene in unseen(16):
        found = propose(sam, scene.image, SETTINGS)
        masks = found.masks()
        whole_ious += best_ious(masks, scene, 2)
        part_ious += best_ious(masks, scene, 1)
        levels += np.bincount(found.level, minlength=3)
    assert np.mean(whole_ious) > 0.85
    assert np.mean(part_ious) > 0.5
    assert levels[2] > 16
    assert levels[1] > 16


def test_the_original_generator_takes_the_toy_sam_too() -> None:
    generator = SamAutomaticMaskGenerator(
        toy_sam(), points_per_side=8, pred_iou_thresh=0.6, stability_score_thresh=0.6, min_mask_region_area=0
    )
    scene = unseen(1)[0]
    masks = np.array([entry["segmentation"] for entry in generator.generate(scene.image)])
    assert min(best_ious(masks, scene, 2)) > 0.7


def test_mean_area_grows_with_the_level() -> None:
    sam = toy_sam()
    areas: list[list[int]] = [[], [], []]
    for scene in unseen(8):
        found = propose(sam, scene.image, SETTINGS)
        for level, area in zip(found.level, found.area_px(), strict=True):
            areas[level].append(int(area))
    sub, part, whole = (np.mean(of_level) for of_level in areas)
    assert sub < part < whole
