"""Proposals against segment-anything's own generator (changes off) and against the loops of the method (changes on)."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam
from torch import nn

from fmwsss.core.schemas import DETECTIONS_PAYLOAD, detections_from_row, detections_row
from fmwsss.core.superpixels.masks import Superpixels, intersections
from fmwsss.core.superpixels.postprocess import finish
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import detect, pack_bits, propose
from fmwsss.core.superpixels.small_regions import clean_superpixels
from fmwsss.core.toy.models import toy_sam
from fmwsss.core.toy.world import draw_scene
from tests.references import sam as reference

IMAGE_SIZE, WIDTH = 64, 64
OFF = {"whole_bonus": 0.0, "whole_priority": 0.0, "occupation_threshold": None, "min_region_area_px": 0}
CHANGED = ProposalSettings(
    points_per_side=6,
    points_per_batch=10,
    predicted_iou_threshold=0.7,
    stability_threshold=0.55,
    box_nms_threshold=0.5,
    min_region_area_px=30,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class BumpDecoder(nn.Module):
    """In place of a trained mask decoder: three masks around the prompt, growing with the level.

    A decoder with random weights gives the same noise for every prompt, which no suppression could tell apart. Here the
    product of the prompt's position code with the image's is a bump at the prompt, with ripples that leave islands.
    """

    num_multimask_outputs = 3

    def forward(
        self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, multimask_output
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bump = torch.einsum("nc,chw->nhw", sparse_prompt_embeddings[:, 0], image_pe[0]) / (WIDTH / 2)
        bump = bump + 0.1 * image_embeddings[0].mean(0)
        bump = nn.functional.interpolate(bump[:, None], scale_factor=4, mode="bilinear")
        height = torch.tensor([0.6, 0.4, 0.25]).reshape(1, 3, 1, 1)
        ious = 0.7 + 0.3 * torch.sin(5 * sparse_prompt_embeddings[:, 0, :3])
        return 40 * (bump - height), ious


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    side = IMAGE_SIZE // 8
    encoder = ImageEncoderViT(
        img_size=IMAGE_SIZE, patch_size=8, embed_dim=16, depth=1, num_heads=2, out_chans=WIDTH, window_size=0
    )
    prompts = PromptEncoder(
        WIDTH, image_embedding_size=(side, side), input_image_size=(IMAGE_SIZE, IMAGE_SIZE), mask_in_chans=4
    )
    return Sam(encoder, prompts, BumpDecoder()).eval()  # pyright: ignore[reportArgumentType]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def assert_equals_generator(
    sam: Sam, image: np.ndarray, settings: ProposalSettings, rounding: bool = False
) -> Superpixels:
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points_per_side,
        points_per_batch=settings.points_per_batch or 64,
        pred_iou_thresh=settings.predicted_iou_threshold,
        stability_score_thresh=settings.stability_threshold,
        stability_score_offset=settings.stability_offset,
        box_nms_thresh=settings.box_nms_threshold,
        crop_n_layers=settings.crop_layers,
        crop_nms_thresh=settings.box_nms_threshold,
        crop_n_points_downscale_factor=settings.crop_downscale,
    )
    theirs, ours = generator.generate(image), propose(sam, image, settings)
    assert len(ours) == len(theirs)
    masks = np.array([r["segmentation"] for r in theirs]).reshape(ours.masks().shape)
    predicted_iou = np.array([r["predicted_iou"] for r in theirs], np.float32)
    stability = np.array([r["stability_score"] for r in theirs], np.float32)
    if rounding:
        assert ((ours.masks() != masks).sum(axis=(1, 2)) <= np.maximum(1, masks.sum(axis=(1, 2)) // 10_000)).all()
        np.testing.assert_allclose(ours.predicted_iou, predicted_iou, atol=1e-4)
        np.testing.assert_allclose(ours.stability, stability, atol=1e-3)
        return ours
    np.testing.assert_array_equal(ours.masks(), masks)
    np.testing.assert_array_equal(ours.predicted_iou, predicted_iou)
    np.testing.assert_array_equal(ours.stability, stability)
    boxes = ours.boxes_px()
    boxes[:, 2:] -= boxes[:, :2]
    np.testing.assert_array_equal(boxes, np.array([r["bbox"] for r in theirs]).reshape(-1, 4))
    return ours


@pytest.mark.parametrize("size", [(64, 64), (48, 90), (150, 70)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_layers": 1},
        {"crop_layers": 2, "points_per_batch": 7},
        {"predicted_iou_threshold": 0.0, "stability_threshold": 0.01, "box_nms_threshold": 0.95},
        {"crop_layers": 1, "stability_threshold": 0.5, "stability_offset": 0.5, "box_nms_threshold": 0.3},
    ],
)
def test_changes_off_equals_segment_anything(sam: Sam, size: tuple[int, int], changes: dict):
    numbers = {"points_per_side": 8, "points_per_batch": 20, "predicted_iou_threshold": 0.7, "stability_threshold": 0.6}
    ours = assert_equals_generator(sam, picture(*size), ProposalSettings(**(OFF | numbers | changes)))
    assert len(ours) > 2
    assert set(ours.level) == {0, 1, 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"whole_bonus": 0.0},
        {"whole_priority": 0.0},
        {"occupation_threshold": None},
        {"crop_layers": 1},
        {"crop_layers": 1, "occupation_threshold": None},
        {"crop_layers": 1, "whole_priority": 0.0, "occupation_threshold": None},
        {"crop_layers": 1, "min_region_area_px": 0, "occupation_threshold": 0.7},
        {"min_region_area_px": 400, "box_nms_threshold": 0.2, "occupation_threshold": None},
    ],
)
def test_changes_on_equals_the_method_in_loops(sam: Sam, changes: dict):
    settings = dataclasses.replace(CHANGED, **changes)
    image = picture(70, 100)
    ours, naive = propose(sam, image, settings), reference.propose(sam, image, settings)
    assert len(ours) > 1
    np.testing.assert_array_equal(ours.level, [r["level"] for r in naive])
    np.testing.assert_array_equal(ours.masks(), [r["mask"] for r in naive])
    np.testing.assert_allclose(ours.predicted_iou, [r["predicted_iou"] for r in naive], rtol=1e-6)
    np.testing.assert_allclose(ours.stability, [r["stability"] for r in naive], rtol=1e-6)


def test_each_change_changes_something(sam: Sam):
    """Guards the tests above: settings under which a change has no effect would prove nothing."""
    image = picture(70, 100)
    whole = {}
    for name, off in (
        ("whole_bonus", 0.0),
        ("whole_priority", 0.0),
        ("occupation_threshold", None),
        ("min_region_area_px", 0),
    ):
        whole[name] = propose(sam, image, dataclasses.replace(CHANGED, **{name: off})).rle
    changed = propose(sam, image, CHANGED).rle
    assert all(rle != changed for rle in whole.values())


def test_order_is_by_level_and_then_predicted_iou(sam: Sam):
    settings = ProposalSettings(points_per_side=6, predicted_iou_threshold=0.5, stability_threshold=0.5)
    found = propose(sam, picture(80, 60), dataclasses.replace(settings, occupation_threshold=1.0))
    ranks = list(zip(-found.level.astype(int), -found.predicted_iou, strict=True))
    assert len(set(found.level)) > 1
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (17, 5)])
@pytest.mark.parametrize("crop_layers", [0, 2])
def test_images_of_any_size(sam: Sam, size: tuple[int, int], crop_layers: int):
    settings = ProposalSettings(
        points_per_side=4, predicted_iou_threshold=0.0, stability_threshold=0.0, crop_layers=crop_layers
    )
    found = propose(sam, picture(*size), settings)
    assert (found.height_px, found.width_px) == size
    assert (found.area_px() > 0).all()


def test_nothing_passes_the_thresholds(sam: Sam):
    settings = ProposalSettings(points_per_side=4, predicted_iou_threshold=1.0, whole_bonus=0.0, crop_layers=1)
    found = propose(sam, picture(30, 40), settings)
    assert len(found) == 0
    assert found.masks().shape == (0, 30, 40)


def test_result_is_the_same_every_time(sam: Sam):
    settings = ProposalSettings(points_per_side=6, predicted_iou_threshold=0.5, stability_threshold=0.5)
    first, second = (propose(sam, picture(80, 60), settings) for _ in range(2))
    assert first.rle == second.rle
    np.testing.assert_array_equal(first.predicted_iou, second.predicted_iou)


def test_a_model_of_one_mask_is_refused(sam: Sam):
    decoder = BumpDecoder()
    decoder.num_multimask_outputs = 1
    single = Sam(sam.image_encoder, sam.prompt_encoder, decoder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="gives 1 masks for a prompt"):
        propose(single, picture(10, 10), ProposalSettings())


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)), st.integers(0, 12))
def test_cleaning_is_the_naive_one(masks: np.ndarray, min_area_px: int):
    zeros = np.zeros(len(masks), np.float32)
    superpixels = Superpixels.from_masks(masks, zeros.astype(np.int8), zeros, zeros)
    cleaned, untouched = clean_superpixels(superpixels, min_area_px)
    expected = [reference.clean_mask(mask, min_area_px) for mask in masks]
    np.testing.assert_array_equal(untouched, [not changed for _, changed in expected])
    np.testing.assert_array_equal(cleaned.masks(), [mask for mask, _ in expected])
    assert cleaned.rle == tuple(coco.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask, _ in expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points_per_side", 0, "points_per_side must be at least 1, got 0"),
        ("points_per_batch", 0, "points_per_batch must be at least 1, or None, got 0"),
        ("predicted_iou_threshold", 1.5, "predicted_iou_threshold must be between 0 and 1, got 1.5"),
        ("stability_threshold", float("nan"), "stability_threshold must be between 0 and 1, got nan"),
        ("box_nms_threshold", -0.1, "box_nms_threshold must be between 0 and 1"),
        ("stability_offset", -1.0, "stability_offset must not be negative"),
        ("min_region_area_px", -1, "min_region_area_px must not be negative"),
        ("whole_bonus", -0.1, "whole_bonus must not be negative"),
        ("occupation_threshold", 0.0, "occupation_threshold must be above 0 and at most 1, or None"),
        ("crop_layers", 6, "points_per_side 32 leaves no point for crop layer 6 at crop_downscale 2"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ProposalSettings(), **{name: value})


@pytest.mark.parametrize(("number", "crop_layers"), [(0, 0), (7, 1)])
def test_changes_off_equals_segment_anything_on_photographs(real, number: int, crop_layers: int):
    pytest.importorskip("mobile_sam")
    sys.path.insert(0, str(real))
    from factories import mobile_sam  # pyright: ignore[reportMissingImports]

    name = (real / "voc/ImageSets/Segmentation/val.txt").read_text().split()[number]
    image = np.array(Image.open(real / f"voc/JPEGImages/{name}.jpg").convert("RGB"))
    numbers = {"points_per_side": 4, "predicted_iou_threshold": 0.5, "stability_threshold": 0.7}
    settings = ProposalSettings(**(OFF | numbers), crop_layers=crop_layers)
    # The decoder's sums are grouped differently: a pixel at the threshold may fall on the other side.
    assert len(assert_equals_generator(mobile_sam(), image, settings, rounding=True)) > 3


class SmallMemory(BumpDecoder):
    """Has room for a few prompts at a time."""

    room, sizes = 3, ()

    def forward(self, image_embeddings, image_pe, sparse_prompt_embeddings, *others, **named):
        self.sizes += (len(sparse_prompt_embeddings),)
        if len(sparse_prompt_embeddings) > self.room:
            raise torch.OutOfMemoryError
        return super().forward(image_embeddings, image_pe, sparse_prompt_embeddings, *others, **named)


def test_out_of_memory_halves_the_batch_and_goes_on(sam: Sam):
    decoder = SmallMemory()
    small = Sam(sam.image_encoder, sam.prompt_encoder, decoder)  # pyright: ignore[reportArgumentType]
    image = picture(40, 50)
    found = propose(small, image, dataclasses.replace(CHANGED, points_per_batch=12))
    assert decoder.sizes[:3] == (12, 6, 3)
    assert set(decoder.sizes[2:]) == {3}
    assert found.rle == propose(sam, image, CHANGED).rle
    decoder.sizes = ()
    propose(small, image, dataclasses.replace(CHANGED, points_per_batch=12, crop_layers=1))
    assert (decoder.sizes.count(12), decoder.sizes.count(6)) == (1, 1), "later crops begin with what fitted"
    decoder.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        propose(small, image, CHANGED)


def test_compat_forgets_the_level_between_crops_and_after_cleaning(sam: Sam):
    settings = dataclasses.replace(CHANGED, crop_layers=1, occupation_threshold=None, box_nms_threshold=0.3)
    image = picture(70, 100)
    keeps, forgets = (propose(sam, image, dataclasses.replace(settings, compat=compat)) for compat in (False, True))
    assert keeps.rle != forgets.rle
    # In the first suppression, within a crop, both give wholes their priority.
    alone = dataclasses.replace(settings, crop_layers=0, min_region_area_px=0)
    assert propose(sam, image, alone).rle == propose(sam, image, dataclasses.replace(alone, compat=True)).rle


def test_half_precision_finds_nearly_the_same_masks():
    sam, image = toy_sam(), draw_scene(3).image
    settings = ProposalSettings(points_per_side=8, predicted_iou_threshold=0.5, stability_threshold=0.5)
    exact, half = (propose(sam, image, dataclasses.replace(settings, precision=p)) for p in ("float32", "bfloat16"))
    assert exact.rle != half.rle
    assert half.predicted_iou.dtype == np.float32
    overlap = intersections(exact, half)
    iou = overlap / (exact.area_px()[:, None] + half.area_px() - overlap)
    assert (iou.max(axis=1) > 0.9).mean() > 0.9


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_finds_the_same_masks_and_leaves_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    sam, image = toy_sam(), draw_scene(3).image
    settings = ProposalSettings(points_per_side=8, predicted_iou_threshold=0.5, stability_threshold=0.5)
    plain, compiled = (propose(sam, image, dataclasses.replace(settings, compiled=own)) for own in (False, True))
    overlap = intersections(plain, compiled)
    iou = overlap / (plain.area_px()[:, None] + compiled.area_px() - overlap)
    assert len(plain) == len(compiled)
    assert (iou.diagonal() > 0.99).all()
    assert any(path.suffix == ".so" for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("num_bits", [0, 1, 8, 13, 64, 101])
def test_bits_packed_where_they_are_are_numpys(num_bits: int):
    bits = torch.rand(5, num_bits, generator=torch.Generator().manual_seed(num_bits)) < 0.5
    np.testing.assert_array_equal(pack_bits(bits).numpy(), np.packbits(bits.numpy(), axis=1))


def test_masks_on_their_way_to_another_worker_lose_nothing(sam: Sam):
    settings = dataclasses.replace(CHANGED, crop_layers=1)
    image = picture(70, 101)
    detections = detect(sam, image, settings)
    table = pa.Table.from_pylist([detections_row(detections)], schema=pa.schema(DETECTIONS_PAYLOAD))
    (row,) = table.to_pylist()
    assert finish(detections_from_row(row), settings).rle == propose(sam, image, settings).rle
    assert len({len(bits) for bits in detections.bits}) > 1  # masks of crops are as small as their crop
