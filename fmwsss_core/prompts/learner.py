"""Learnable CoOp-style contexts for a frozen CLIP text encoder (method M3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.clip.prefix_tree import token_tree
from fmwsss.core.errors import InputError
from fmwsss.core.prompts.defaults import INIT_STD, NUM_BACKGROUNDS, NUM_CONTEXT
from fmwsss.core.vocabulary import HANDMADE_TEMPLATE, Vocabulary

Context = Literal["unified", "class-specific"]
NamePosition = Literal["end", "front", "middle"]
Backgrounds = Literal["named", "learned"]

# A word that is one token: it holds the places of the context vectors.
_PLACEHOLDER = "X"
_METADATA_KEY = "fmwsss_prompts"
_CLIP_NAME = "clip_name"
# What a saved file must say for the same prompts to be built again.
_SETTINGS = ("context", "name_position", "num_context", "backgrounds", "num_backgrounds")


class PromptLearner(nn.Module):
    """Text embeddings of a vocabulary from trainable context vectors; nothing else trains.

    The initial contexts are drawn on the CPU from `seed`, so they are the same on every device. The CLIP is used, not
    owned: it is neither in `parameters()` nor in `state_dict()`, and `to()` does not move it.

    Args:
        clip: the frozen CLIP whose text tower reads the prompts; the contexts live on its device.
        vocabulary: classes, prompt strings and background words.
        context: one context for all prompts, or one for each.
        name_position: end [v1..vM][name]., front [name][v1..vM]., middle [v1..vM/2][name][rest].
        num_context: M, context vectors of a prompt.
        init_std: standard deviation of the initial vectors (CoOp .02).
        backgrounds: the vocabulary's background words with contexts of the same kind, or prompts without a name, each
            with a context of its own.
        num_backgrounds: how many prompts without a name; only read when they are learned.
        seed: of the initial vectors.

    Raises:
        ValueError: no context vector, a negative number of backgrounds, an unknown choice, or too long a prompt.
    """

    def __init__(
        self,
        clip: FrozenClip,
        vocabulary: Vocabulary,
        *,
        context: Context,
        name_position: NamePosition,
        num_context: int = NUM_CONTEXT,
        init_std: float = INIT_STD,
        backgrounds: Backgrounds,
        num_backgrounds: int = NUM_BACKGROUNDS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_context < 1 or num_backgrounds < 0:
            raise InputError(
                f"num_context {num_context} must be at least 1, num_backgrounds {num_backgrounds} at least 0"
            )
        for option, value, choices in (
            ("context", context, get_args(Context)),
            ("name_position", name_position, get_args(NamePosition)),
            ("backgrounds", backgrounds, get_args(Backgrounds)),
        ):
            if value not in choices:
                raise InputError(f"{option} is {value!r}; it can be {' or '.join(choices)}")
        self._clip = (clip,)  # in a tuple, so that torch does not count it as a part of this module
        self.vocabulary = vocabulary
        if backgrounds == "named":
            num_backgrounds = len(vocabulary.backgrounds)
        values = (context, name_position, num_context, backgrounds, num_backgrounds)
        self.settings: dict[str, Any] = dict(zip(_SETTINGS, values, strict=True))

        names = [*vocabulary.prompts, *(vocabulary.backgrounds if backgrounds == "named" else [])]
        context_rows = [0] * len(names) if context == "unified" else list(range(len(names)))
        if backgrounds == "learned":
            first = context_rows[-1] + 1
            names += [""] * num_backgrounds
            context_rows += range(first, first + num_backgrounds)
        # Synonymous classes under one context are one prompt, and are encoded once.
        prompts = list(dict.fromkeys(zip(names, context_rows, strict=True)))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        rows = torch.tensor([row_of[prompt] for prompt in zip(names, context_rows, strict=True)])

        layouts = [_layout(clip, name, name_position, num_context) for name, _ in prompts]
        ids = clip.token_ids([text for text, _ in layouts])
        written = [ids[i, : end + 1].tolist() for i, end in enumerate(clip.end_positions(ids).tolist())]
        for symbols, (_, places), (_, context_row) in zip(written, layouts, prompts, strict=True):
            for vector, place in enumerate(places):
                symbols[place] = (context_row, vector)
        self.tree = token_tree(written).to(clip.device)
        is_context = [isinstance(symbol, tuple) for symbol in self.tree.symbols]
        fixed = torch.tensor(
            [0 if of_context else symbol for symbol, of_context in zip(self.tree.symbols, is_context, strict=True)]
        )
        slots = [symbol[0] * num_context + symbol[1] for symbol in self.tree.symbols if isinstance(symbol, tuple)]
        tensors = {
            "_embeddings": clip.token_embeddings(fixed.to(clip.device)),
            "_context_nodes": torch.tensor(is_context).nonzero()[:, 0],
            "_context_slots": torch.tensor(slots),
            "_foreground_rows": rows[: len(vocabulary.classes)],
            "_background_rows": rows[len(vocabulary.classes) :],
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(clip.device), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(max(context_rows) + 1, num_context, clip.text_width, generator=generator) * init_std
        self.context = nn.Parameter(drawn.to(self._embeddings))

    _embeddings: Tensor
    _context_nodes: Tensor
    _context_slots: Tensor
    _foreground_rows: Tensor
    _background_rows: Tensor

    def token_embeddings(self) -> Float[Tensor, "nodes text_width"]:
        """Token embeddings of every node of `tree`, with the contexts in their places."""
        return self._with_contexts(self.context)

    def _with_contexts(
        self, context: Float[Tensor, "contexts vectors text_width"]
    ) -> Float[Tensor, "nodes text_width"]:
        vectors = context.flatten(0, 1)[self._context_slots]
        return self._embeddings.index_put((self._context_nodes,), vectors)

    def forward(self) -> tuple[Float[Tensor, "classes embed"], Float[Tensor, "backgrounds embed"]]:
        """Text embeddings of the classes and of the backgrounds, L2-normalised, differentiable to the contexts."""
        return self.embeddings_of(self.context)

    def embeddings_of(
        self, context: Float[Tensor, "contexts vectors text_width"]
    ) -> tuple[Float[Tensor, "classes embed"], Float[Tensor, "backgrounds embed"]]:
        """As `forward`, of other contexts than the learner's own."""
        text = self._clip[0].encode_text(self._with_contexts(context), self.tree)
        return text[self._foreground_rows], text[self._background_rows]

    def to_bytes(self) -> bytes:
        """The contexts (float32) as a safetensors file that says what they belong to; equal prompts (of a
        CLIP of the same name), equal bytes."""
        metadata = {**self.settings, **_belongs_to(self._clip[0], self.vocabulary), _CLIP_NAME: self._clip[0].name}
        tensors = {"context": self.context.detach().float().cpu().contiguous()}
        return save(tensors, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)})

    @classmethod
    def from_bytes(cls, clip: FrozenClip, vocabulary: Vocabulary, data: bytes) -> PromptLearner:
        """The prompts of `to_bytes`.

        Args:
            clip: in front of whose text encoder they were trained.
            vocabulary: the classes and backgrounds they were trained for.
            data: a safetensors file.

        Returns:
            A learner with those contexts.

        Raises:
            ValueError: not such a file, or trained with another CLIP or another vocabulary; the message says which.
        """
        saved = _read_metadata(data)
        for key, here in _belongs_to(clip, vocabulary).items():
            if saved.get(key) != here:
                names = (saved.get(_CLIP_NAME, ""), clip.name) if key == "clip" else ("", "")
                raise InputError(f"these prompts were trained with {_difference(key, saved.get(key), here, names)}")
        learner = cls(clip, vocabulary, **{key: saved[key] for key in _SETTINGS})
        with torch.no_grad():
            learner.context.copy_(load(data)["context"])
        return learner

    @torch.no_grad()
    def nearest_words(self, count: int) -> list[tuple[str, list[list[tuple[str, float]]]]]:
        """Real words near each context vector, for people: the nearest rows of the token table, by Euclidean distance.

        Returns:
            For each context its owner (`all` for a shared one) and, for each of its vectors, `count` words with their
            distances, nearest first.
        """
        clip = self._clip[0]
        words, ids = clip.words()
        # Without a matrix product and its differences of large squares: a word's distance from itself is 0.
        distances = torch.cdist(
            self.context.flatten(0, 1).float(),
            clip.token_embeddings(ids).float(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        nearest = distances.topk(min(count, len(words)), largest=False)
        found = [
            [(words[i], float(value)) for i, value in zip(row, values, strict=True)]
            for row, values in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
        ]
        per_context = self.context.shape[1]
        owners = self._context_owners()
        return [(owner, found[i * per_context : (i + 1) * per_context]) for i, owner in enumerate(owners)]

    def _context_owners(self) -> list[str]:
        """What each context belongs to, in the order of `context`."""
        named = [*self.vocabulary.classes]
        if self.settings["backgrounds"] == "named":
            named += self.vocabulary.backgrounds
        owners = ["all"] if self.settings["context"] == "unified" else named
        nameless = self.settings["num_backgrounds"] if self.settings["backgrounds"] == "learned" else 0
        return owners + [f"background {number}" for number in range(1, nameless + 1)]


@torch.no_grad()
def handmade_embeddings(
    clip: FrozenClip, vocabulary: Vocabulary, templates: Sequence[str] | Literal["imagenet"] = (HANDMADE_TEMPLATE,)
) -> tuple[Float[Tensor, "classes embed"], Float[Tensor, "backgrounds embed"]]:
    """Text embeddings of hand-made prompts, classes and backgrounds, L2-normalised; the default is CLIP-ES's (M1).

    Args:
        clip: the frozen CLIP.
        vocabulary: whose names are put into the templates.
        templates: each with one `{}`; of several the embeddings of a name are averaged. `imagenet`: the 80 that CLIP
            was published with.
    """
    if templates == "imagenet":
        templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    of_templates = [_embedded(clip, [text.format(name) for name in _names(vocabulary)]) for text in templates]
    # One alone keeps its digits.
    text = of_templates[0] if len(of_templates) == 1 else normalize(torch.stack(of_templates).mean(dim=0), dim=1)
    return text[: len(vocabulary.classes)], text[len(vocabulary.classes) :]


def _names(vocabulary: Vocabulary) -> tuple[str, ...]:
    return (*vocabulary.prompts, *vocabulary.backgrounds)


def _embedded(clip: FrozenClip, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    ids = clip.token_ids(texts)
    tree = token_tree([ids[i, : end + 1].tolist() for i, end in enumerate(clip.end_positions(ids).tolist())])
    symbols = torch.tensor(tree.symbols, device=clip.device)
    return clip.encode_text(clip.token_embeddings(symbols), tree.to(clip.device))


def _layout(clip: FrozenClip, name: str, position: NamePosition, num_context: int) -> tuple[str, list[int]]:
    """A prompt with placeholders, and the token positions of these."""
    num_before = {"end": num_context, "front": 0, "middle": num_context // 2}[position]
    words = [_PLACEHOLDER] * num_before + [name] * bool(name) + [_PLACEHOLDER] * (num_context - num_before)
    num_name_tokens = int(clip.end_positions(clip.token_ids([name]))[0]) - 1
    places = range(1, 1 + num_context)
    return " ".join(words) + ".", [place if place <= num_before else place + num_name_tokens for place in places]


def _belongs_to(clip: FrozenClip, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "clip": clip.identity,
        "vocabulary": vocabulary.name,
        "classes": list(vocabulary.classes),
        "prompts": list(vocabulary.prompts),
        "background_names": list(vocabulary.backgrounds),
    }


def _read_metadata(data: bytes) -> dict[str, Any]:
    # safetensors' own reader of metadata wants a file: 8 bytes of length, little endian, then JSON.
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"][_METADATA_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("this is not a file of saved prompts") from error


def _difference(key: str, saved: Any, here: Any, names: tuple[str, str]) -> str:
    if isinstance(here, list) and isinstance(saved, list):
        if len(saved) != len(here):
            return f"{len(saved)} {key}, not these {len(here)}"
        index = next(i for i, pair in enumerate(zip(saved, here, strict=True)) if pair[0] != pair[1])
        return f"other {key}: number {index + 1} was {saved[index]!r}, here it is {here[index]!r}"
    was, is_here = (
        f"{name} ({value!r})" if name else repr(value) for name, value in zip(names, (saved, here), strict=True)
    )
    return f"the {key} {was}, not {is_here}"
