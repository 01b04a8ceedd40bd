"""The toy CLIP and SAM on scenes that they were not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import propose
from fmwsss.core.toy.models import WEIGHTS, toy_clip, toy_sam
from fmwsss.core.toy.train import FIRST_TRAINING_SEED
from fmwsss.core.toy.world import TOY, Scene, draw_scene

SETTINGS = ProposalSettings(
    points_per_side=10, predicted_iou_threshold=0.5, stability_threshold=0.5, min_region_area_px=0
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
        features = clip.encode_image(clip.preprocess(image))
        embedding = clip.last_block(features.last_block_input).embedding
        scores.append((embedding @ foreground.T)[0].detach().numpy())
        surroundings.append((embedding @ background.T)[0].detach().numpy())
    for found, words, of in ((scores, TOY.classes, "classes"), (surroundings, TOY.backgrounds, "backgrounds")):
        target = np.array([[word in getattr(scene, of) for word in words] for scene in scenes])
        precisions = [average_precision(np.array(found)[:, i], target[:, i]) for i in range(len(words))]
        assert np.mean(precisions) > 0.98, dict(zip(words, precisions, strict=True))


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
    whole_ious, levels = [], np.zeros(3, np.int64)
    for scene in unseen(24):
        found = propose(sam, scene.image, SETTINGS)
        whole_ious += best_ious(found.masks(), scene, 2)
        levels += np.bincount(found.level, minlength=3)
    assert np.mean(whole_ious) > 0.85
    assert levels[2] > 72
    assert levels[1] > 8


def test_the_three_outputs_are_sub_part_part_and_whole() -> None:
    predictor = SamPredictor(toy_sam())
    rng = np.random.default_rng(0)
    areas, ious = [], []
    for scene in unseen(20):
        predictor.set_image(scene.image)
        rows, columns = np.nonzero(scene.truth)
        for index in rng.integers(len(rows), size=4):
            y, x = rows[index], columns[index]
            masks, _, _ = predictor.predict(np.array([[x + 0.5, y + 0.5]]), np.array([1]), multimask_output=True)
            areas.append(masks.sum((1, 2)))
            true = scene.levels == scene.levels[:, y, x][:, None, None]
            ious.append((masks & true).sum((1, 2)) / (masks | true).sum((1, 2)))
    sub_part, part, whole = np.mean(areas, axis=0)
    assert sub_part < part < whole
    assert np.mean(ious, axis=0)[2] > 0.65


def test_the_original_generator_takes_the_toy_sam_too() -> None:
    generator = SamAutomaticMaskGenerator(
        toy_sam(), points_per_side=8, pred_iou_thresh=0.4, stability_score_thresh=0.4, min_mask_region_area=0
    )
    scene = unseen(3)[1]
    masks = np.array([entry["segmentation"] for entry in generator.generate(scene.image)])
    assert max(best_ious(masks, scene, 2)) > 0.6
