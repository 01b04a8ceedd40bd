"""Refinement as a stage, operator by operator: with and without class maps, and images that one of them lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fmwsss.cluster.execution.rows import start_rows
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.clip_maps import ClipReplica
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import PROMPTS_FILE, Run
from fmwsss.core.images import decode_label_png, encode_label_png
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.schemas import (
    IMAGES,
    MAPS_PAYLOAD,
    PREDICTIONS,
    SUPERPIXELS,
    maps_from_bytes,
    maps_to_bytes,
    superpixels_row,
)
from fmwsss.core.segmenter.inference import to_grid
from fmwsss.core.segmenter.refine import refine_labels
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.toy.world import TOY, draw_scene
from fmwsss.jobs.config.segmenter import PredictSection
from fmwsss.jobs.segmenter.refine import decode_predicted_shard, refine_shard
from tests.support.image_files import png

PART, SPEC = "part-00000.parquet", ModelSpec(model="toy")
NAMES = pa.table({"part": [PART]})


def scene_of(seed: int) -> tuple[np.ndarray, np.ndarray, Superpixels, np.ndarray, list[int]]:
    """Image, what the segmenter says, one superpixel for each object, probabilities on a grid, predicted classes."""
    scene = draw_scene(seed)
    indices = sorted({*np.unique(scene.truth).tolist()} - {0})
    masks = np.stack([scene.truth == index for index in indices])
    ones = np.ones(len(masks), np.float32)
    superpixels = Superpixels.from_masks(masks, np.full(len(masks), 2, np.int8), ones, ones)
    # Not sure of any class, and for the first one everywhere.
    objects = scene.truth > 0
    values = np.stack([~objects, 0.55 * objects, *(0.45 * objects for _ in indices[1:])])
    return scene.image, scene.truth, superpixels, to_grid(torch.from_numpy(values).float()), indices


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Some images of two classes, one of which has no superpixels, and one of one class."""
    run = Run(Folder(str(tmp_path)))
    images, said, superpixels = [], [], []
    for name, seed in SEEDS.items():
        image, truth, own, grid, indices = scene_of(seed)
        row = {"image_id": name, "height_px": truth.shape[0], "width_px": truth.shape[1]}
        images.append({**dict.fromkeys(IMAGES.names), **row, "image": png(image), "classes": ["not", "read"]})
        said.append({**row, "labels": encode_label_png(truth), "classes": [TOY.classes[i - 1] for i in indices],
                     "mean_confidence": 1.0, "grid_height": grid.shape[1], "grid_width": grid.shape[2],
                     "probabilities": maps_to_bytes(grid)})  # fmt: skip
        if name != "bare":
            superpixels.append(superpixels_row(name, own))
    run.write_part("images", PART, images, IMAGES, [])
    run.write_part("predicted", PART, said, PREDICTIONS, [])
    run.write_part("superpixels", PART, superpixels, SUPERPIXELS, [])
    return run


def first_of(num_classes: int, count: int) -> list[int]:
    """The seeds of the first toy scenes that show so many classes, each on half a per cent of it at least."""
    found = []
    for seed in range(200):
        truth = draw_scene(seed).truth
        counts = np.bincount(truth.ravel())[1:]
        counts = counts[counts > 0]
        if len(counts) == num_classes and counts.min() > 0.005 * truth.size:
            found.append(seed)
        if len(found) == count:
            break
    return found


PAIRS = ("a", "b", "c", "d", "e")
SEEDS = {**dict(zip((*PAIRS, "bare"), first_of(2, 6), strict=True)), "single": first_of(1, 1)[0]}


def labels_of(run: Run) -> dict[str, np.ndarray]:
    rows = run.read_part("refined", PART).to_pylist()
    return {row["image_id"]: decode_label_png(row["labels"]) for row in rows}


def test_class_maps_are_made_of_what_was_predicted_and_have_their_say(run: Run) -> None:
    learner = PromptLearner(
        load_clip(SPEC), TOY, context="unified", name_position="end", backgrounds="named", num_context=2
    )
    run.folder.write(PROMPTS_FILE, learner.to_bytes())
    replica = ClipReplica(SPEC, TOY, (run.folder, PROMPTS_FILE), None, 1, (1.0,), 8, "refined", num_threads=1)
    mapped = replica(decode_predicted_shard(NAMES, run, "predicted", "refined"))
    section = PredictSection(cam_weight=0.9)
    refine_shard(mapped, run, "predicted", "refined", TOY, section, "superpixels", "cam")
    refined = labels_of(run)
    assert list(refined) == [*PAIRS, "single"]
    assert run.failures("refined").num_rows == 0
    changed = 0
    for row in mapped.to_pylist()[: len(PAIRS)]:
        _, truth, superpixels, grid, indices = scene_of(SEEDS[row["image_id"]])
        assert row["classes"] == [TOY.classes[index - 1] for index in indices]
        cams = maps_from_bytes(row["cam"], 2, row["grid_height"], row["grid_width"])
        expected = refine_labels(superpixels, grid, indices, truth, section.alpha, cams, indices, 0.9).labels
        np.testing.assert_array_equal(refined[row["image_id"]], expected)
        changed += not np.array_equal(expected, refine_labels(superpixels, grid, indices, truth, section.alpha).labels)
    assert changed
    # A class alone needs no map.
    (single,) = (row for row in mapped.to_pylist() if row["image_id"] == "single")
    assert (single["classes"], single["cam"]) == ([], b"")


@pytest.mark.parametrize("source", ["superpixels", "images"])
def test_without_class_maps_nothing_but_the_predictions_is_read(run: Run, source: str) -> None:
    section = PredictSection(refine="sams" if source == "superpixels" else "crf")
    refine_shard(NAMES, run, "predicted", "refined", TOY, section, source, None)
    refined = labels_of(run)
    assert list(refined) == [*PAIRS, *(["bare"] if source == "images" else []), "single"]
    if source == "superpixels":
        _, truth, superpixels, grid, indices = scene_of(SEEDS["a"])
        expected = refine_labels(superpixels, grid, indices, truth, section.alpha).labels
        np.testing.assert_array_equal(refined["a"], expected)


@pytest.mark.parametrize("maps", [None, "cam"])
def test_a_part_without_any_superpixels_is_finished_all_the_same(tmp_path: Path, maps: str | None) -> None:
    run = Run(Folder(str(tmp_path)))
    truth = scene_of(SEEDS["bare"])[1]
    said = {**dict.fromkeys(PREDICTIONS.names), "image_id": "bare", "labels": encode_label_png(truth), "classes": [],
            "height_px": 1, "width_px": 1}  # fmt: skip
    run.write_part("predicted", PART, [said], PREDICTIONS, [])
    run.write_part("superpixels", PART, [], SUPERPIXELS, [])
    block = NAMES if maps is None else start_rows(PART, [{"image_id": "bare", "classes": []}], MAPS_PAYLOAD)
    counts = refine_shard(block, run, "predicted", "refined", TOY, PredictSection(), "superpixels", maps)
    (told,) = counts.to_pylist()
    assert {"part": PART, "num_rows": 0, "num_failures": 0}.items() <= told.items()
    assert labels_of(run) == {}


def test_class_maps_are_for_superpixels() -> None:
    with pytest.raises(ValueError, match="`cam_weight` needs `refine: sams`"):
        PredictSection(refine="crf", cam_weight=0.5)
