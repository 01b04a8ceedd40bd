"""Learned prompts against whole prompts read by open_clip, and what they keep when they are saved."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.prompts.learner import PromptLearner, handmade_embeddings
from fmwsss.core.vocabularies import VOC12
from fmwsss.core.vocabulary import Vocabulary
from tests.references import clip as reference

torch.set_num_threads(1)

TINY = Vocabulary(
    "tiny",
    ("cat", "human", "sofa", "couch"),
    ("cat", "person with clothes,people,human", "sofa", "sofa"),
    ("sky", "road"),
)
# Words of one token each, to stand where context vectors stand.
WORDS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return FrozenClip(reference.random_clip(), "random")


def _word_vectors(clip: FrozenClip, words: list[str]) -> torch.Tensor:
    ids = clip.token_ids([" ".join(words)])
    assert int(clip.end_positions(ids)[0]) == len(words) + 1
    return clip.token_embeddings(ids)[0, 1 : 1 + len(words)]


@pytest.mark.parametrize(
    ("position", "template"),
    [("end", "red green blue {}."), ("front", "{} red green blue."), ("middle", "red {} green blue.")],
)
@pytest.mark.parametrize("backgrounds", ["named", "learned"])
def test_words_as_context_give_the_written_prompt(clip: FrozenClip, position, template: str, backgrounds):
    learner = PromptLearner(
        clip,
        TINY,
        context="unified",
        name_position=position,
        num_context=3,
        backgrounds=backgrounds,
        num_backgrounds=2,
    )
    with torch.no_grad():
        learner.context.copy_(_word_vectors(clip, WORDS).expand_as(learner.context))
    foreground, background = learner()
    written = [template.format(name) for name in TINY.prompts]
    written += (
        [template.format(name) for name in TINY.backgrounds] if backgrounds == "named" else ["red green blue."] * 2
    )
    expected = reference.text_embedding(clip.model, clip.token_ids(written))
    torch.testing.assert_close(foreground, expected[:4], rtol=0, atol=1e-12)
    torch.testing.assert_close(background, expected[4:], rtol=0, atol=1e-12)


def test_class_specific_contexts_go_to_their_own_prompt(clip: FrozenClip):
    learner = PromptLearner(
        clip,
        TINY,
        context="class-specific",
        name_position="front",
        num_context=1,
        backgrounds="learned",
        num_backgrounds=1,
    )
    words = ["red", "green", "blue", "dark", "light"]
    with torch.no_grad():
        learner.context.copy_(_word_vectors(clip, words)[:, None])
    texts = [f"{name} {word}." for name, word in zip(TINY.prompts, words, strict=False)] + ["light."]
    expected = reference.text_embedding(clip.model, clip.token_ids(texts))
    torch.testing.assert_close(torch.cat(learner()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("context", "backgrounds", "num_contexts", "num_prompts"),
    # "sofa" stands for two classes: under one context that is one prompt.
    [
        ("unified", "named", 1, 5),
        ("unified", "learned", 8, 10),
        ("class-specific", "named", 6, 6),
        ("class-specific", "learned", 11, 11),
    ],
)
def test_numbers_of_contexts_and_prompts(clip: FrozenClip, context, backgrounds, num_contexts: int, num_prompts: int):
    learner = PromptLearner(
        clip, TINY, context=context, name_position="end", num_context=4, backgrounds=backgrounds, num_backgrounds=7
    )
    assert learner.context.shape == (num_contexts, 4, clip.text_width)
    assert len(learner.tree.path) == num_prompts
    foreground, background = learner()
    assert len(foreground) == 4
    assert len(background) == (2 if backgrounds == "named" else 7)
    assert torch.equal(foreground[2], foreground[3]) == (context == "unified")


@pytest.mark.parametrize("context", ["unified", "class-specific"])
@pytest.mark.parametrize("position", ["end", "front", "middle"])
@pytest.mark.parametrize("backgrounds", ["named", "learned"])
@pytest.mark.parametrize("vocabulary", [TINY, VOC12], ids=["tiny", "voc"])
def test_every_kind_of_prompt_against_the_whole_text_tower(
    clip: FrozenClip, context, position, backgrounds, vocabulary: Vocabulary
):
    learner = PromptLearner(
        clip, vocabulary, context=context, name_position=position, num_context=3, backgrounds=backgrounds,
        num_backgrounds=2, init_std=0.5,
    )  # fmt: skip
    names = [*vocabulary.prompts, *(vocabulary.backgrounds if backgrounds == "named" else ["", ""])]
    num_before = {"end": 3, "front": 0, "middle": 1}[position]
    whole = []
    for row, name in enumerate(names):
        is_nameless = name == ""
        if context == "unified":
            vectors = learner.context[1 + row - len(vocabulary.classes) if is_nameless else 0]
        else:
            vectors = learner.context[row]
        words = clip.token_ids([f"{name}."])[0]
        inside = clip.token_embeddings(words)[: int((words > 0).sum())]
        stop = len(inside) - 2  # the name's tokens lie between [SOS] and the full stop
        whole.append(torch.cat([inside[:1], vectors[:num_before], inside[1:stop], vectors[num_before:], inside[stop:]]))
    direction = torch.randn(len(whole), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def gradient(texts: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((texts * direction).sum(), learner.context)[0]

    expected = reference.whole_text_tower(clip.model, whole)
    ours = torch.cat(learner())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    theirs = gradient(expected)
    assert float((gradient(ours) - theirs).abs().max() / theirs.abs().max()) < 1e-10


def test_what_prompts_have_in_common_is_computed_once(clip: FrozenClip):
    shared = PromptLearner(clip, TINY, context="unified", name_position="end", num_context=16, backgrounds="named")
    lengths = (shared.tree.end + 1).tolist()
    assert len(shared.tree.symbols) <= 17 + sum(lengths) - 17 * len(lengths)
    own = PromptLearner(clip, TINY, context="class-specific", name_position="end", num_context=16, backgrounds="named")
    assert len(own.tree.symbols) == sum((own.tree.end + 1).tolist()) - (len(own.tree.end) - 1)  # [SOS] alone is shared


def test_prompts_that_share_little_attend_along_each(clip: FrozenClip, monkeypatch: pytest.MonkeyPatch):
    """Of the two ways of `_attend_in_tree`, the one that is cheaper; the test above holds both to the whole tower."""
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*heads: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        masks.append(attn_mask is not None)
        return attend(*heads, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr("fmwsss.core.clip.frozen_clip.functional.scaled_dot_product_attention", spy)
    kinds: tuple[tuple[Literal["unified", "class-specific"], bool], ...]
    kinds = (("unified", True), ("class-specific", False))
    for context, is_masked in kinds:
        PromptLearner(clip, VOC12, context=context, name_position="end", num_context=3, backgrounds="named")()
        assert set(masks) == {is_masked}
        masks.clear()


def test_only_the_contexts_train(clip: FrozenClip):
    learner = PromptLearner(clip, TINY, context="unified", name_position="end", num_context=2, backgrounds="named")
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    assert list(learner.state_dict()) == ["context"]
    foreground, background = learner()
    (foreground[:, 0].sum() + background[:, 0].sum()).backward()
    assert learner.context.grad is not None
    assert learner.context.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_the_seed_decides_the_initial_contexts(clip: FrozenClip):
    def contexts(**settings) -> torch.Tensor:
        return PromptLearner(
            clip,
            TINY,
            context="class-specific",
            name_position="end",
            num_context=50,
            backgrounds="learned",
            **settings,
        ).context.detach()

    assert torch.equal(contexts(seed=1), contexts(seed=1))
    assert not torch.equal(contexts(seed=1), contexts(seed=2))
    assert float(contexts(init_std=0.015).std()) == pytest.approx(0.015, rel=0.02)


@pytest.mark.parametrize("context", ["unified", "class-specific"])
@pytest.mark.parametrize("position", ["end", "front", "middle"])
@pytest.mark.parametrize("backgrounds", ["named", "learned"])
def test_saved_prompts_come_back(context, position, backgrounds):
    clip = FrozenClip(reference.random_clip(dtype=torch.float32), "random")
    learner = PromptLearner(
        clip, TINY, context=context, name_position=position, num_context=3, backgrounds=backgrounds, num_backgrounds=2
    )
    with torch.no_grad():
        learner.context.mul_(7).add_(0.1)
    data = learner.to_bytes()
    again = PromptLearner.from_bytes(clip, TINY, data)
    assert again.to_bytes() == data
    assert torch.equal(torch.cat(again()), torch.cat(learner()))


def test_prompts_of_another_origin_are_refused(clip: FrozenClip):
    data = PromptLearner(
        clip, TINY, context="unified", name_position="end", num_context=2, backgrounds="named"
    ).to_bytes()
    other = FrozenClip(clip.model, "another")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="trained with the clip 'random', not 'another'"):
        PromptLearner.from_bytes(other, TINY, data)
    ours, theirs = (FrozenClip(clip.model, own, name=name) for own, name in (("a1", "ViT-B-16 openai"), ("b2", "RN50")))  # pyright: ignore[reportArgumentType]
    named = PromptLearner(ours, TINY, context="unified", name_position="end", num_context=2, backgrounds="named")
    with pytest.raises(ValueError, match=r"the clip ViT-B-16 openai \('a1'\), not RN50 \('b2'\)$"):
        PromptLearner.from_bytes(theirs, TINY, named.to_bytes())
    for vocabulary, message in [
        (replace(TINY, name="big"), "the vocabulary 'tiny', not 'big'"),
        (
            replace(TINY, classes=("cat", "man", "sofa", "couch")),
            "other classes: number 2 was 'human', here it is 'man'",
        ),
        (replace(TINY, classes=TINY.classes[:3], prompts=TINY.prompts[:3]), "4 classes, not these 3"),
        (replace(TINY, prompts=("cat", "human", "sofa", "sofa")), "other prompts: number 2 was 'person with"),
        (replace(TINY, backgrounds=("sky",)), "2 background_names, not these 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            PromptLearner.from_bytes(clip, vocabulary, data)
    for broken in (b"", b"not a file at all", data[:40]):
        with pytest.raises(ValueError, match="not a file of saved prompts"):
            PromptLearner.from_bytes(clip, TINY, broken)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_context": 0}, "num_context 0 must be at least 1"),
        ({"num_backgrounds": -1}, "num_backgrounds -1"),
        ({"num_context": 75}, "has 79 tokens; this CLIP reads at most 77"),
    ],
)
def test_impossible_prompts_are_refused(clip: FrozenClip, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PromptLearner(clip, TINY, context="unified", name_position="end", backgrounds="learned", **settings)


def test_handmade_prompts_are_the_template(clip: FrozenClip):
    foreground, background = handmade_embeddings(clip, TINY)
    texts = [f"a clean origami {name}." for name in (*TINY.prompts, *TINY.backgrounds)]
    expected = reference.text_embedding(clip.model, clip.token_ids(texts))
    torch.testing.assert_close(torch.cat([foreground, background]), expected, rtol=0, atol=1e-12)


def test_unknown_choices_are_refused_where_shapes_and_types_are_not_checked():
    # The import hook of the tests would stop these before our own check: a plain interpreter has none.
    program = """
from fmwsss.core.clip import FrozenClip
from fmwsss.core.prompts import PromptLearner
from fmwsss.core.vocabularies import custom_vocabulary
from tests.references.clip import random_clip
clip, vocabulary = FrozenClip(random_clip(), "random"), custom_vocabulary(["cat"])
good = {"context": "unified", "name_position": "end", "backgrounds": "named"}
for option in good:
    try:
        PromptLearner(clip, vocabulary, **{**good, option: "typo"})
    except ValueError as error:
        print(error)
"""
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "context is 'typo'; it can be unified or class-specific",
        "name_position is 'typo'; it can be end or front or middle",
        "backgrounds is 'typo'; it can be named or learned",
    ]


def test_nearest_words_of_vectors_that_are_words(clip: FrozenClip):
    learner = PromptLearner(
        clip, TINY, context="unified", name_position="end", num_context=3, backgrounds="learned", num_backgrounds=1
    )
    with torch.no_grad():
        learner.context[0] = _word_vectors(clip, WORDS)
        learner.context[1] = _word_vectors(clip, ["dark", "light", "train"])
    found = learner.nearest_words(2)
    assert [owner for owner, _ in found] == ["all", "background 1"]
    assert [[words[0][0] for words in vectors] for _, vectors in found] == [WORDS, ["dark", "light", "train"]]
    assert all(words[0][1] < 1e-3 < words[1][1] for _, vectors in found for words in vectors)
    own = PromptLearner(clip, TINY, context="class-specific", name_position="end", num_context=1, backgrounds="named")
    assert [owner for owner, _ in own.nearest_words(1)] == [*TINY.classes, *TINY.backgrounds]
