"""The order of training: the same for one worker and for several, from the start and from the middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.ledger import Run, part_name
from cluster.storage import Folder
from fmwsss_core.images import encode_label_png
from fmwsss_core.records import IMAGES, SEEDS
from fmwsss_core.toy.world import TOY, draw_scene
from jobs.batches import Batch, BatchSource, batches_per_epoch
from tests.pictures import png

AUGMENT = {"long_side_px": (100, 130), "crop_px": 64, "jitter": True, "flip": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> BatchSource:
    run = Run(Folder(str(tmp_path_factory.mktemp("run"))))
    parts = [part_name(i) for i in range(3)]
    for number, part in enumerate(parts):
        scenes = {f"scene-{seed}": draw_scene(seed) for seed in range(5 * number, 5 * number + 5)}
        images = [
            {"image_id": name, "image": png(scene.image), "classes": list(scene.classes)}
            for name, scene in scenes.items()
        ]
        run.write_part("images", part, [{**dict.fromkeys(IMAGES.names), **row} for row in images], IMAGES, [])
        seeds = [{"image_id": name, "seed": encode_label_png(scene.truth)} for name, scene in scenes.items()][:4]
        run.write_part("seeds/coarse", part, [{**dict.fromkeys(SEEDS.names), **row} for row in seeds], SEEDS, [])
    return BatchSource(run, tuple(parts), None, TOY, 4, AUGMENT, random_seed=1)


def drawn(source: BatchSource, first: int, last: int, rank: int = 0, num_workers: int = 1) -> list[Batch]:
    return list(source.batches(first, last, batches_per_epoch(15, 4), rank, num_workers))


def test_workers_share_what_one_would_have(source: BatchSource) -> None:
    alone, first, second = drawn(source, 0, 7), drawn(source, 0, 7, 0, 2), drawn(source, 0, 7, 1, 2)
    assert len(alone) == len(first) == len(second) == 7
    for whole, even, odd in zip(alone, first, second, strict=True):
        assert torch.equal(whole.images[0::2], even.images)
        assert torch.equal(whole.images[1::2], odd.images)
        assert torch.equal(whole.present[1::2], odd.present)


def test_a_start_in_the_middle_goes_on_in_the_same_order(source: BatchSource) -> None:
    for whole, later in zip(drawn(source, 0, 8)[4:], drawn(source, 4, 8), strict=True):
        assert torch.equal(whole.images, later.images)


def test_an_epoch_has_each_image_once_and_the_next_another_order(source: BatchSource) -> None:
    labels = [
        np.sort(np.concatenate([batch.present.sum(1) for batch in drawn(source, 3 * e, 3 * e + 3)])) for e in (0, 1)
    ]
    assert [len(epoch) for epoch in labels] == [12, 12]
    assert not torch.equal(drawn(source, 0, 1)[0].images, drawn(source, 3, 4)[0].images)


def test_label_maps_go_with_their_images_and_images_without_one_are_left_out(source: BatchSource) -> None:
    with_seeds = BatchSource(source.run, source.parts, "seeds/coarse", TOY, 4, AUGMENT, random_seed=1)
    batches = list(with_seeds.batches(0, 3, batches_per_epoch(12, 4), 0, 1))
    assert sum(len(batch.images) for batch in batches) == 12
    for batch in batches:
        assert batch.labels is not None
        for labels, present in zip(batch.labels, batch.present, strict=True):
            assert set(labels.unique().tolist()) <= {0, *(1 + torch.nonzero(present).flatten()).tolist()}
