"""The order of training: the same for one worker and for several, from the start and from the middle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.images import encode_label_png
from fmwsss.core.schemas import IMAGES, SEEDS, features_schema, features_to_bytes
from fmwsss.core.toy.world import TOY, draw_scene
from fmwsss.jobs.prompts.batches import Batch, BatchSource
from fmwsss.jobs.training.sampling import count_rows
from tests.support.image_files import png

AUGMENT = {"long_side_px": (100, 130), "crop_px": 64, "jitter": True, "flip": True}
NUM_IMAGES = 15


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> BatchSource:
    run = Run(Folder(str(tmp_path_factory.mktemp("run"))))
    parts = tuple(part_name(i) for i in range(3))
    for number, part in enumerate(parts):
        scenes = {f"scene-{seed}": draw_scene(seed) for seed in range(5 * number, 5 * number + 5)}
        images = [
            {"image_id": name, "image": png(scene.image), "classes": list(scene.classes)}
            for name, scene in scenes.items()
        ]
        run.write_part("images", part, [{**dict.fromkeys(IMAGES.names), **row} for row in images], IMAGES, [])
        seeds = [{"image_id": name, "seed": encode_label_png(scene.truth)} for name, scene in scenes.items()][:4]
        run.write_part("seeds/coarse", part, [{**dict.fromkeys(SEEDS.names), **row} for row in seeds], SEEDS, [])
        schema = features_schema(2)
        # What view of what image it is, as an array that can be told apart.
        features = [
            {f"view_{view}": features_to_bytes(np.full((2, 3), 10 * seed + view + 1.0, np.float32)) for view in (0, 1)}
            | {"image_id": f"scene-{seed}", "height_px": 128, "width_px": 128}
            for seed in range(5 * number, 5 * number + 5)
        ]
        run.write_part("features/classification", part, features, schema, [])
    return BatchSource(
        run, parts, count_rows(run, parts, ["images"]), None, None, ((2, 3),), 2, TOY, 4, AUGMENT, random_seed=1
    )


def drawn(source: BatchSource, first: int, last: int, rank: int = 0, num_workers: int = 1) -> list[Batch]:
    return list(source.batches(first, last, rank, num_workers))


def pixels(batch: Batch) -> torch.Tensor:
    assert batch.images is not None
    return batch.images


@pytest.mark.long
def test_workers_share_what_one_would_have_and_a_start_in_the_middle_goes_on(source: BatchSource) -> None:
    assert (source.num_images, source.rows_per_batch, source.batches_per_epoch) == (NUM_IMAGES, 4, 3)
    alone, later = drawn(source, 0, 7), drawn(source, 4, 7)
    first, second = drawn(source, 0, 7, 0, 2), drawn(source, 0, 7, 1, 2)
    assert len(alone) == len(first) == len(second) == 7
    for whole, even, odd in zip(alone, first, second, strict=True):
        assert torch.equal(pixels(whole)[0::2], pixels(even))
        assert torch.equal(pixels(whole)[1::2], pixels(odd))
        assert torch.equal(whole.present[1::2], odd.present)
    for whole, again in zip(alone[4:], later, strict=True):
        assert torch.equal(pixels(whole), pixels(again))


def test_cached_views_come_in_turn_each_image_once_an_epoch_in_another_order(source: BatchSource) -> None:
    cached = replace(source, feature_stage="features/classification")
    seen = [batch.features[0][:, 0, 0].round().int() for batch in drawn(cached, 0, 9)]
    epochs = [torch.cat(seen[begin : begin + 3]) for begin in (0, 3, 6)]
    for number, epoch in enumerate(epochs):
        assert len(epoch.unique()) == 12
        assert set((epoch % 10).tolist()) == {number % 2 + 1}
    assert not torch.equal(epochs[0], epochs[2])


def test_label_maps_go_with_their_images_and_images_without_one_are_left_out(source: BatchSource) -> None:
    rows = count_rows(source.run, source.parts, ["images", "seeds/coarse"])
    assert rows == (4, 4, 4)
    plain = replace(source, part_rows=rows, seed_stage="seeds/coarse")
    batches = drawn(plain, 0, 3)
    assert sum(len(batch.present) for batch in batches) == 12
    for batch in batches:
        assert batch.labels is not None
        for labels, present in zip(batch.labels, batch.present, strict=True):
            assert set(labels.unique().tolist()) <= {0, *(1 + torch.nonzero(present).flatten()).tolist()}
    # With cached features the label map is drawn anew, and is the same view.
    cached = replace(plain, feature_stage="features/classification")
    for batch, other in zip(batches, drawn(cached, 0, 3), strict=True):
        assert batch.labels is not None
        assert other.labels is not None
        assert torch.equal(batch.labels, other.labels)


def test_fewer_images_than_a_batch_make_a_smaller_one(source: BatchSource) -> None:
    (batch,) = drawn(replace(source, batch_size=100), 0, 1)
    assert len(batch.present) == NUM_IMAGES
