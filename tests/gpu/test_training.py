"""Steps of both trainings on the device: how often the host waits for it, how much it is asked, and the CPU's loss."""

from __future__ import annotations

import pytest
import torch

from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.losses import shows_class
from fmwsss.core.segmenter.mask_criterion import (
    CriterionSettings,
    classes_in,
    count_targets,
    make_targets,
    mask2former_losses,
)
from fmwsss.core.toy.models import toy_clip
from fmwsss.core.toy.world import TOY
from tests.support.card import Card

BATCH, LAYERS, QUERIES, CLASSES = 16, 10, 50, 21


@pytest.fixture
def random_numbers(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the double they are the CPU's."""
    if card.double is not None:
        import torch.distributed.tensor  # reads the type of a generator when it is imported

        make = torch.Generator
        monkeypatch.setattr(torch, "Generator", lambda device="cpu": make())


@pytest.mark.usefixtures("random_numbers")
def test_a_batch_of_segmentations_is_asked_for_together(card: Card):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(LAYERS, BATCH, QUERIES, CLASSES + 1, generator=generator)
    mask_logits = torch.randn(LAYERS, BATCH, QUERIES, 16, 16, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH, 2, 2), generator=generator).to(torch.uint8)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels[:, :8] = 255
    settings, seeds = CriterionSettings(num_points=256), list(range(BATCH))
    totals = count_targets(classes_in(labels, None))
    expected = mask2former_losses(class_logits, mask_logits, make_targets(labels, None), totals, seeds, settings)
    here = [each.to(card.device) for each in (class_logits, mask_logits, labels)]
    with card.waits() as waits:
        found = mask2former_losses(here[0], here[1], make_targets(here[2], None), totals, seeds, settings)
    assert waits.total() <= 2, waits
    for name, value in expected.items():
        # A real device draws other points.
        close = 1e-4 if card.double is not None else 0.05
        assert float(found[name]) == pytest.approx(float(value), rel=close), name
    if card.double is not None:
        with card.double.counting() as counts:
            mask2former_losses(here[0], here[1], make_targets(here[2], None), totals, seeds, settings)
        assert counts.num_launches <= 16 * BATCH, counts.launches.most_common(10)


def test_a_step_of_prompts_waits_for_nothing(card: Card):
    pytest.importorskip("pydantic")  # a machine with a card may lack it
    from fmwsss.jobs.config.prompts import SegmentationPrompts
    from fmwsss.jobs.prompts.batches import Batch
    from fmwsss.jobs.prompts.train_step import batch_loss, make_embedder, make_learner
    from fmwsss.jobs.training.prefetch import pinned

    section = SegmentationPrompts(classification_weight=1.0, cam_weight=1.0, precision="float32")
    generator = torch.Generator().manual_seed(0)
    side = section.augment.crop_px
    images = torch.randint(0, 256, (4, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (4, side, side), generator=generator).to(torch.uint8)
    present = torch.zeros(4, len(TOY.classes), dtype=torch.bool)
    present[:, 0] = present[::2, 1] = True
    batch = Batch(images, (), present, labels, shows_class(labels))
    losses = []
    for device in (torch.device("cpu"), card.device):
        clip = FrozenClip(toy_clip(), identity="toy").to(device)
        learner = make_learner(clip, TOY, section, 0)
        embed = make_embedder(clip, learner, section) if card.double is None else learner
        own = batch if card.double is not None else pinned(batch, device)
        batch_loss(clip, embed, own, section, FittingBatch(4))
        with card.waits() as waits:
            loss = batch_loss(clip, embed, own, section, FittingBatch(4))
            weighted, *_ = loss.weighted(1.0, 1.0, loss.num_classified, loss.num_mapped)
        assert waits.total() == 0, waits
        losses.append(float(weighted.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if card.double is not None else 2e-2)


def test_a_batch_is_on_the_device_whole(card: Card):
    pytest.importorskip("pydantic")
    from fmwsss.jobs.prompts.batches import Batch
    from fmwsss.jobs.training.prefetch import sent

    batch = Batch(None, (torch.ones(2, 3), torch.zeros(2)), torch.ones(2, 1, dtype=torch.bool), None)
    there = sent(batch, card.device)
    assert {each.device.type for each in (*there.features, there.present)} == {"cuda"}
    assert there.labels is None
