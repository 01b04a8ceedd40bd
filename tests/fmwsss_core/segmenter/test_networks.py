"""Both networks: what they promise of losses and probabilities, and how they are optimised."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.lite_segmenter import LiteSegmenter
from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.core.segmenter.deeplab import DeepLabV3Plus
from fmwsss.core.segmenter.inference import probabilities, to_grid
from fmwsss.core.segmenter.mask2former import Mask2Former, new_mask2former, on_clip
from fmwsss.core.segmenter.optimizer import (
    backward,
    clip_gradients,
    has_batch_norm,
    make_optimizer,
    parameter_groups,
    poly_factor,
)
from fmwsss.core.toy.models import toy_clip
from tests.references import clip as clip_reference

NAMES = ("background", "cat", "dog")
SMALL = {
    "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32,
    "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 6, "train_num_points": 100,
}  # fmt: skip
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8] * 4,
    "depths": [1] * 4,
    "layer_type": "basic",
}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}


def make(kind: str) -> Segmenter:
    if kind == "deeplab":
        return DeepLabV3Plus(len(NAMES), "resnet26", random_seed=0)
    if kind == "lite":
        return LiteSegmenter(len(NAMES))
    if kind == "clip":
        return Mask2Former(on_clip(NAMES, FrozenClip(toy_clip(), "toy"), SMALL, random_seed=0))
    backbone = {"resnet": RESNET, "swin": SWIN}[kind]
    return Mask2Former(new_mask2former(NAMES, backbone, SMALL, random_seed=0))


def batch(size: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (size, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (size, 8, 8), generator=generator).to(torch.uint8)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :, 48:] = 255
    return images, labels


@pytest.mark.parametrize("kind", ["resnet", "swin", "clip", "deeplab", "lite"])
def test_every_network_learns_and_predicts(kind: str):
    segmenter = make(kind).train()
    images, labels = batch()
    optimizer = make_optimizer(segmenter, "adamw", 1e-3, 0.05, 1.0)
    first = last = 0.0
    for step in range(8):
        optimizer.zero_grad()
        parts = backward(segmenter, images, labels, None, [1, 2], 1, "float32", lambda values: values)
        optimizer.step()
        last = sum(float(part) for part in parts.values())
        first = first or last
        assert np.isfinite(last), step
    assert last < first
    segmenter.eval()
    image = images[0, :, :50, :40].permute(1, 2, 0).numpy()
    values = probabilities(segmenter, image, short_side_px=40, scales=(1.0, 1.5), flip=True)
    assert values.shape == (3, 50, 40)
    torch.testing.assert_close(values.sum(0), torch.ones(50, 40))
    assert to_grid(values).shape == (3, 13, 10)


@pytest.mark.parametrize("merge_queries", ["sum", "max"])
def test_scores_of_a_mask2former_against_loops(merge_queries: Any):
    segmenter = make("resnet").eval()
    assert isinstance(segmenter, Mask2Former)
    segmenter.merge_queries = merge_queries
    images, _ = batch()
    with torch.no_grad():
        scores = segmenter.scores(images)
        output = segmenter.network(pixel_values=segmenter.normalise(images))
    masks = functional.interpolate(output.masks_queries_logits, (64, 64), mode="bilinear").sigmoid()
    classes = output.class_queries_logits.softmax(-1)
    merge = sum if merge_queries == "sum" else max
    for image, y, x in ((0, 0, 0), (0, 31, 5), (1, 63, 40)):
        votes = [
            merge([float(classes[image, q, c] * masks[image, q, y, x]) for q in range(SMALL["num_queries"])])
            for c in range(len(NAMES))
        ]
        expected = torch.tensor([vote / sum(votes) for vote in votes])
        torch.testing.assert_close(scores[image, :, y, x], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["resnet", "deeplab", "lite"])
def test_labels_under_255_do_not_exist(kind: str):
    """What the image shows there may be seen; what class it has is not learned, and no weight on it counts."""
    segmenter = make(kind).eval()  # batch statistics and dropout aside
    images, labels = batch()

    def gradient(weights: Tensor | None) -> Tensor:
        segmenter.zero_grad()
        backward(segmenter, images, labels, weights, [1, 2], 1, "float32", lambda values: values)
        return torch.cat([p.grad.flatten() for p in segmenter.parameters() if p.grad is not None])

    plain = gradient(None)
    weights = torch.ones(labels.shape)
    weights[labels == 255] = 7.0
    assert plain.abs().max() > 0
    assert torch.equal(plain, gradient(weights))


def test_deeplab_is_cross_entropy_over_the_other_pixels():
    segmenter = make("deeplab").eval()
    images, labels = batch()
    assert isinstance(segmenter, DeepLabV3Plus)
    parts = segmenter.losses(images, labels, None, segmenter.measure(labels, None), [0, 0])
    scores = segmenter.scores(images)
    expected = functional.nll_loss(scores.log(), labels.long(), ignore_index=255)
    assert parts["pixels"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["resnet", "deeplab"])
def test_micro_batches_and_shares_give_the_gradient_of_the_whole(kind: str):
    segmenter = make(kind).eval()
    images, labels = batch(4)
    labels[0, :32] = 0
    seeds = [5, 6, 7, 8]

    def gradients() -> Tensor:
        return torch.cat([p.grad.flatten() for p in segmenter.parameters() if p.grad is not None])

    whole_parts = backward(segmenter, images, labels, None, seeds, 1, "float32", lambda values: values)
    whole = gradients()
    segmenter.zero_grad()
    total = segmenter.measure(labels, None)
    for share, pieces in ((slice(0, 1), 1), (slice(1, 4), 3)):
        backward(segmenter, images[share], labels[share], None, seeds[share], pieces, "float32", lambda _: total)
    assert (gradients() - whole).norm() < 5e-3 * whole.norm()
    assert set(whole_parts) in ({"class", "mask", "dice"}, {"pixels", "auxiliary"})


def test_memory_that_runs_out_leaves_no_half_gradient(monkeypatch: pytest.MonkeyPatch):
    segmenter: Any = make("resnet").eval()
    images, labels = batch(4)
    measured, sizes = segmenter.losses, []

    def losses(images: Tensor, *others: Any) -> Any:
        sizes.append(len(images))
        found = measured(images, *others)
        # Memory runs out on the way back, when some parameters have their gradient.
        if len(images) > 1:
            next(iter(found.values())).backward(retain_graph=True)
            raise torch.OutOfMemoryError
        return found

    def gradient(pieces: int | FittingBatch) -> Tensor:
        segmenter.zero_grad()
        backward(segmenter, images, labels, None, [5, 6, 7, 8], pieces, "float32", lambda values: values)
        return torch.cat([p.grad.flatten() for p in segmenter.parameters() if p.grad is not None])

    singly = gradient(4)
    monkeypatch.setattr(segmenter, "losses", losses)
    fitting = FittingBatch(4)
    assert torch.equal(gradient(fitting), singly)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert fitting.size == 1
    with pytest.raises(torch.OutOfMemoryError):
        gradient(2)


def test_only_in_training_do_batch_norms_tie_images_together():
    assert has_batch_norm(make("deeplab").train())
    assert not has_batch_norm(make("deeplab").eval())
    assert not has_batch_norm(make("swin").train())


def test_the_backbone_is_slower_and_norms_do_not_decay():
    segmenter: Any = make("resnet")
    groups = parameter_groups(segmenter, 1e-4, 0.05, 0.1)
    by_id = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(by_id) == sum(p.requires_grad for p in segmenter.parameters())
    for name, parameter in segmenter.backbone.named_parameters():
        decay = 0.0 if "normalization" in name else 0.05
        assert by_id[id(parameter)] == (pytest.approx(1e-5), decay), name
    queries = segmenter.network.model.transformer_module.queries_features.weight
    assert by_id[id(queries)] == (1e-4, 0.0)


def test_a_frozen_clip_stays_as_it_is():
    segmenter = make("clip")
    names = [name for name, parameter in segmenter.named_parameters() if parameter.requires_grad]
    assert not any(".clip." in name for name in names)
    assert any("stem" in name for name in names)


@pytest.mark.parametrize(
    ("layers", "patch", "kept", "strides"),
    [
        (1, 16, [], (4, 8, 16, 32)),
        (2, 8, [], (4, 8, 8, 16)),
        (3, 14, [0], (4, 8, 16, 32)),
        (4, 8, [0, 1], (4, 8, 8, 16)),
        (12, 32, [2, 5], (4, 8, 16, 32)),
    ],
)
def test_maps_of_a_clip_are_as_fine_as_its_patches(layers: int, patch: int, kept: list[int], strides: tuple[int, ...]):
    clip = FrozenClip(clip_reference.random_clip(layers=layers, patch=patch, dtype=torch.float32), "small")
    network = on_clip(NAMES, clip, SMALL, random_seed=0)
    backbone: Any = network.model.pixel_level_module.encoder
    assert backbone.blocks_kept == kept
    assert tuple(network.config.feature_strides) == strides
    maps = backbone(torch.zeros(1, 3, 64, 96)).feature_maps
    assert [tuple(each.shape) for each in maps] == [(1, 32, 64 // stride, 96 // stride) for stride in strides]


def test_on_a_clip_query_k_begins_as_that_of_class_k():
    segmenter: Any = make("clip").eval()
    with torch.no_grad():
        output = segmenter.network(pixel_values=torch.zeros(1, 3, 64, 64), output_auxiliary_logits=True)
    before_any_layer = output.auxiliary_logits[0]["class_queries_logits"][0]
    assert before_any_layer.argmax(-1)[: len(NAMES)].tolist() == [0, 1, 2]


def test_the_schedule():
    factors = [poly_factor(t, 100, 0.9, 0) for t in range(101)]
    assert factors[0] == 1.0
    assert factors[100] == 0.0
    assert factors[50] == pytest.approx(0.5**0.9)
    assert all(a > b for a, b in itertools.pairwise(factors))
    warm = [poly_factor(t, 100, 0.9, 10) for t in range(20)]
    assert warm[0] == pytest.approx(1 / 11)
    assert warm[10] == factors[10]
    # mmsegmentation: (lr - min_lr) * (1 - t / T)^power + min_lr, here of lr .01 and min_lr 1e-4.
    for t in (0, 37, 99, 100):
        expected = (0.01 - 1e-4) * (1 - t / 100) ** 0.9 + 1e-4
        assert 0.01 * poly_factor(t, 100, 0.9, 0, 0.01) == pytest.approx(expected, rel=1e-12)


def test_the_stem_of_mmsegmentation_by_hand():
    """Three convolutions of 3 x 3 under mmsegmentation's names; everything behind them is torchvision's."""
    segmenter = DeepLabV3Plus(3, "resnet26_v1c", random_seed=0).eval()
    state = segmenter.resnet.state_dict()
    x = images = torch.rand(2, 3, 32, 40)
    for number, stride in ((0, 2), (3, 1), (6, 1)):
        x = functional.conv2d(x, state[f"stem.{number}.weight"], stride=stride, padding=1)
        norm = [state[f"stem.{number + 1}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = functional.batch_norm(x, *norm).relu()
    assert x.shape == (2, 64, 16, 20)
    plain = DeepLabV3Plus(3, "resnet26", random_seed=0).eval()
    names = {name for name in plain.resnet.state_dict() if name.partition(".")[0] not in ("conv1", "bn1")}
    assert names == {name for name in state if not name.startswith("stem.")}
    plain.resnet.load_state_dict({name: state[name] for name in names}, strict=False)
    for layer in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = dict(plain.resnet.named_children())[layer](x)
    torch.testing.assert_close(segmenter.resnet(images)["high"], x)


def test_gradients_are_clipped_together():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    clip_gradients(parameters, None)
    assert parameters[1].grad.item() == 4.0
    clip_gradients(parameters, 0.5)
    assert parameters[0].grad.tolist() == pytest.approx([0.3, 0.0], rel=1e-4)
    assert parameters[1].grad.item() == pytest.approx(0.4, rel=1e-4)


def test_flip_and_scales_are_means():
    segmenter = make("resnet").eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    plain = probabilities(segmenter, image, 64)
    mirrored = probabilities(segmenter, image[:, ::-1], 64).flip(-1)
    both = probabilities(segmenter, image, 64, flip=True)
    torch.testing.assert_close(both, (plain + mirrored) / 2, atol=1e-5, rtol=1e-4)
    large = probabilities(segmenter, image, 64, scales=(1.5,))
    mean = probabilities(segmenter, image, 64, scales=(1.0, 1.5))
    torch.testing.assert_close(mean, (plain + large) / 2, atol=1e-5, rtol=1e-4)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="no backbone of type 'swim'"):
        new_mask2former(NAMES, {"model_type": "swim"}, SMALL, 0)
    with pytest.raises(ValueError, match="'num_querys' is no setting"):
        new_mask2former(NAMES, RESNET, {"num_querys": 3}, 0)
    with pytest.raises(ValueError, match="no 'resnet18'"):
        DeepLabV3Plus(3, "resnet18", 0)


@pytest.mark.parametrize("kind", ["resnet", "clip", "deeplab", "lite"])
def test_half_precision_is_for_the_network_and_not_for_the_losses(kind: str):
    segmenter = make(kind).eval()
    images, labels = batch()
    exact = backward(segmenter, images, labels, None, [1, 2], 1, "float32", lambda values: values)
    rough = backward(segmenter, images, labels, None, [1, 2], 2, "bfloat16", lambda _: segmenter.measure(labels, None))
    for name, value in rough.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in segmenter.parameters())
