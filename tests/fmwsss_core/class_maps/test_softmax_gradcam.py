"""Softmax-GradCAM against the authors' double backward, in value and in gradient to the context vectors."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch

from fmwsss.core.class_maps.softmax_gradcam import class_scores, normalise, softmax_gradcam
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.clip.last_block import map_product
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.vocabulary import Vocabulary
from tests.references import softmax_gradcam as reference
from tests.references.clip import random_clip

torch.set_num_threads(1)

TINY = Vocabulary("tiny", ("cat", "dog", "train"), ("cat", "dog", "train"), ("sky", "road"))


@pytest.fixture(scope="module")
def small() -> FrozenClip:
    return FrozenClip(random_clip(), "small")


@pytest.fixture(scope="module")
def vit_b16() -> FrozenClip:
    torch.manual_seed(0)
    model: Any = open_clip.create_model("ViT-B-16", pretrained=None)
    return FrozenClip(model, "random ViT-B/16")


def _inputs(clip: FrozenClip, batch: int, height: int, width: int) -> torch.Tensor:
    images = torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(3)).byte()
    return clip.encode_image(clip.preprocess(images)).last_block_input


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.abs().max() > 0
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def _errors(
    clip: FrozenClip, last: torch.Tensor, present: torch.Tensor, is_product: bool = False, **settings
) -> tuple[float, float]:
    """Relative error of the maps, and of the gradient of a random combination of them, against the oracle."""
    learner = PromptLearner(clip, TINY, num_context=4, init_std=0.5, **settings)
    foreground, background = learner()
    block = clip.last_block(last)
    ours = softmax_gradcam(
        map_product(block, num_at_once=3) if is_product else block, clip.logit_scale, foreground, background, present
    )
    theirs = reference.softmax_gradcam(clip.model, last, foreground, background, present)
    assert list(zip(ours.image.tolist(), ours.class_index.tolist(), strict=True)) == [row[:2] for row in theirs]
    expected = torch.stack([row[2] for row in theirs])
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)).to(expected)
    gradients = [
        torch.autograd.grad((maps * direction).sum(), learner.context, retain_graph=True)[0]
        for maps in (ours.cam, expected)
    ]
    return _relative(ours.cam, expected), _relative(*gradients)


PRESENT = torch.tensor([[True, False, True], [False, False, False], [False, True, False], [True, True, True]])


@pytest.mark.parametrize("context", ["unified", "class-specific"])
@pytest.mark.parametrize(("backgrounds", "num_backgrounds"), [("named", 0), ("learned", 2), ("learned", 0)])
@pytest.mark.parametrize("is_product", [False, True])
def test_equals_the_double_backward_in_float64(small: FrozenClip, context, backgrounds, num_backgrounds, is_product):
    last = _inputs(small, 4, 24, 40)
    present = PRESENT.clone()
    if backgrounds == "learned" and num_backgrounds == 0:
        present[2] = torch.tensor([False, True, True])  # one class alone has score 1 and no gradient at all
    errors = _errors(
        small,
        last,
        present,
        is_product=is_product,
        context=context,
        name_position="end",
        backgrounds=backgrounds,
        num_backgrounds=num_backgrounds,
    )
    assert max(errors) < 1e-10, errors


@pytest.mark.parametrize(("context", "position"), [("unified", "end"), ("class-specific", "front")])
def test_equals_the_double_backward_of_a_vit_b16(vit_b16: FrozenClip, context, position):
    last = _inputs(vit_b16, 2, 64, 96)
    present = PRESENT[[0, 3]]
    errors = _errors(vit_b16, last, present, context=context, name_position=position, backgrounds="named")
    print("relative error of map and gradient:", errors)
    assert max(errors) < 1e-5, errors


def test_float32_keeps_its_digits_where_one_class_wins(small: FrozenClip):
    last = _inputs(small, 1, 24, 40)
    direction = small.last_block(last).embedding
    # Cosines 1, .3, .1 and a scale of 14: a score of 1 - 6e-5, of which float32 has three digits left.
    aside = torch.nn.functional.normalize(
        torch.randn_like(direction) @ (torch.eye(16) - direction.T @ direction), dim=1
    )
    text = torch.cat([direction * cosine + aside * (1 - cosine**2) ** 0.5 for cosine in (1.0, 0.3, 0.1)])
    present = torch.tensor([[True, True]])
    ((_, _, expected), _) = reference.softmax_gradcam(small.model, last, text[:2], text[2:], present)
    coarse = FrozenClip(copy.deepcopy(small.model).float(), "float32")  # pyright: ignore[reportArgumentType]
    cam = softmax_gradcam(
        coarse.last_block(last.float()), coarse.logit_scale, text[:2].float(), text[2:].float(), present
    ).cam[0]
    assert _relative(cam, expected) < 5e-6


def test_one_class_without_a_rival_has_no_map(small: FrozenClip):
    last = _inputs(small, 1, 16, 16)
    text = torch.nn.functional.normalize(torch.randn(3, small.embed_dim, dtype=last.dtype), dim=1)
    present = torch.tensor([[False, True, False]])
    assert softmax_gradcam(small.last_block(last), small.logit_scale, text, text[:0], present).cam.abs().max() < 1e-12


def test_a_batch_without_classes_gives_no_rows(small: FrozenClip):
    last = _inputs(small, 2, 16, 24)
    text = torch.randn(3, small.embed_dim, dtype=last.dtype, requires_grad=True)
    maps = softmax_gradcam(
        small.last_block(last), small.logit_scale, text, text[:1], torch.zeros(2, 3, dtype=torch.bool)
    )
    assert maps.cam.shape == (0, 6)
    assert maps.logits.shape == (2, 3)
    (gradient,) = torch.autograd.grad(maps.cam.sum(), text)
    assert gradient.abs().max() == 0


def test_logits_are_scaled_cosines_and_reach_the_text(small: FrozenClip):
    last = _inputs(small, 2, 16, 24)
    text = torch.nn.functional.normalize(torch.randn(3, small.embed_dim, dtype=last.dtype), dim=1).requires_grad_()
    maps = softmax_gradcam(small.last_block(last), small.logit_scale, text, text[:0], PRESENT[[0, 2]])
    embedding = small.last_block(last).embedding
    for i in range(2):
        for c in range(3):
            cosine = torch.nn.functional.cosine_similarity(embedding[i], text[c], dim=0)
            assert float(maps.logits[i, c].detach()) == pytest.approx(float(small.logit_scale * cosine.detach()))
    (gradient,) = torch.autograd.grad(maps.logits[1, 2], text)
    torch.testing.assert_close(gradient[2], small.logit_scale * embedding[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_need_no_gradient_mode(small: FrozenClip, mode):
    text = torch.nn.functional.normalize(torch.randn(3, small.embed_dim, dtype=torch.float64), dim=1)
    expected = softmax_gradcam(
        small.last_block(_inputs(small, 2, 16, 24)), small.logit_scale, text, text[:1], PRESENT[[0, 2]]
    ).cam
    with mode():
        cam = softmax_gradcam(
            small.last_block(_inputs(small, 2, 16, 24)), small.logit_scale, text, text[:1], PRESENT[[0, 2]]
        ).cam
        torch.testing.assert_close(cam, expected, rtol=0, atol=0)


def test_class_scores_against_a_loop():
    logits = torch.tensor([[800.0, -800.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    background = torch.tensor([[799.0], [2.5]], dtype=torch.float64)
    present = torch.tensor([[True, True, False], [False, True, True]])
    scores = class_scores(logits, background, present)
    for i in range(2):
        values = [*logits[i].tolist(), *background[i].tolist()]
        kept = [*present[i].tolist(), True]
        top = max(value for value, keep in zip(values, kept, strict=True) if keep)
        terms = [torch.tensor(v - top).double().exp().item() if k else 0.0 for v, k in zip(values, kept, strict=True)]
        torch.testing.assert_close(scores[i], torch.tensor([t / sum(terms) for t in terms], dtype=torch.float64))
    nothing = class_scores(logits, background[:, :0], torch.zeros(2, 3, dtype=torch.bool))
    assert nothing.abs().max() == 0


def test_normalise_against_a_loop():
    cam = torch.tensor([[-1.0, 0.5, 2.0], [1.0, 1.0, 1.0], [3.0, 2.0, 5.0], [-1.0, -2.0, -3.0]])
    torch.testing.assert_close(normalise(cam), reference.normalise(cam))


def test_a_map_of_a_clear_image_still_peaks_at_one():
    """Method M2: where s is near 1 the raw maximum is far below any constant that could stand beside it."""
    shape = torch.tensor([[0.0, 0.25, 1.0, 0.5], [0.0, 1.0, 0.0, 0.125]])
    for highest in (1e-3, 1e-7, 1e-9, 1e-20):
        torch.testing.assert_close(normalise(shape * highest), shape)
    assert normalise(torch.full((2, 4), 1e-9)).abs().max() == 0
    assert normalise(-shape).abs().max() == 0


def test_normalise_is_that_of_clip_es_after_division_by_the_maximum():
    """CLIP-ES divides twice by (1e-7 + maximum): what is left of its constant is gone after one more division."""
    raw = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).double()
    raw = raw * torch.tensor([[1.0], [1e-3], [1e-5], [1e-6], [1e-7], [1e-8]])
    theirs = reference.scale_as_clip_es(raw)
    assert float(raw[-1].max() / (1e-7 + raw[-1].max())) < 0.3, "one division, as ours was, flattens this map"
    torch.testing.assert_close(normalise(raw), theirs / theirs.amax(dim=1, keepdim=True))
