"""Trains the toy world's CLIP. It sees image-level labels only, as the real one does.

They say which classes and which surroundings a picture shows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from open_clip import CLIP, SimpleTokenizer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.toy.models import IMAGE_PX, PATCH_PX, new_clip
from fmwsss.core.toy.training_loop import WORDS, train
from fmwsss.core.toy.world import TOY, Scene

TEMPLATES = ("{}", "a photo of a {}.", "a clean origami {}.", "X X X X X X X X X X X X X X X X {}.", "{}.")
CLOSE_UP_PX, CLOSE_UPS = 48, 5
# A CLIP has seen every thing in more places than one data set shows; without that it learns the places alone.
AWAY_IN_CAPTIONS = 0.6


class Picture(NamedTuple):
    """What CLIP learns from: pixels and, for every word, whether it is true of them (nan: too little to say)."""

    image: UInt8[np.ndarray, "height width 3"]
    words: Float32[np.ndarray, " words"]


def picture(scene: Scene, rng: np.random.Generator, is_close_up: bool) -> Picture:
    """A scene, or a close-up of it; what can be seen in it is its caption.

    Args:
        scene: as it was drawn.
        rng: where the close-up lies.
        is_close_up: whether it is one.

    Returns:
        Pixels and caption.
    """
    height, width = scene.truth.shape
    image, truth, ground = scene.image, scene.truth, scene.levels[2]
    if is_close_up:
        side = int(rng.integers(28, 68))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        window = np.s_[top : top + side, left : left + side]
        image, truth, ground = image[window], truth[window], ground[window]
        image = np.asarray(Image.fromarray(image).resize((CLOSE_UP_PX, CLOSE_UP_PX), Image.Resampling.BICUBIC))
    classes = np.bincount(truth.ravel(), minlength=len(TOY.classes) + 1)[1:] / truth.size
    behind = np.where(truth == 0, ground, 0)
    backgrounds = np.bincount(behind.ravel(), minlength=256)[1 : len(TOY.backgrounds) + 1] / truth.size
    share = np.concatenate([classes, backgrounds])
    return Picture(image, np.where(share > 0.04, 1.0, np.where(share > 0, np.nan, 0.0)).astype(np.float32))


def embed(
    model: CLIP, pixels: UInt8[Tensor, "batch 3 height width"], residual_share: float
) -> tuple[Float[Tensor, "batch 64"], Float[Tensor, "batch 64"], Float[Tensor, "batch tokens 64"]]:
    """Three embeddings of each picture, with gradients: the mean over patches that the method uses (M2), the class
    token's, and that of every patch if it attended to itself alone.

    What a patch says reaches the others through the values of the last block's attention, and there the method looks
    for it. So some pictures have to do without the path around that attention.

    Args:
        model: the CLIP that is trained.
        pixels: RGB, 0 to 255.
        residual_share: of pictures that keep the path around the last attention, 0 to 1.

    Returns:
        By mean over patches, by class token, by patch.
    """
    visual: Any = model.visual
    side = IMAGE_PX // PATCH_PX
    x = pixels.float() / 255
    size = [-(-length // PATCH_PX) * PATCH_PX for length in x.shape[-2:]]
    x = functional.interpolate(x, size, mode="bicubic", antialias=True)
    x = visual.conv1((x - visual.image_mean[0]) / visual.image_std[0])
    position = visual.positional_embedding[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    x = x + functional.interpolate(position, x.shape[-2:], mode="bilinear", align_corners=False)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)

    def finish(attended: Tensor) -> Tensor:
        return visual.ln_post(attended + last.mlp(last.ln_2(attended))) @ visual.proj

    activation = last.ln_1(x)
    value = functional.linear(
        activation, last.attn.in_proj_weight[-x.shape[2] :], last.attn.in_proj_bias[-x.shape[2] :]
    )
    kept = (torch.rand(len(x), 1, 1) < residual_share).float()
    tokens = finish(kept * x + last.attn(activation, activation, activation, need_weights=False)[0])
    alone = finish(last.attn.out_proj(value))[:, 1:]
    return tuple(functional.normalize(e, dim=-1) for e in (tokens[:, 1:].mean(1), tokens[:, 0], alone))  # type: ignore[return-value]


def clip_loss(
    model: CLIP,
    bias: Float[Tensor, "2"],
    tokens: Int[Tensor, "words length"],
    batch: list[Picture],
    residual_share: float = 0.5,
) -> Float[Tensor, ""]:
    """Binary cross entropy and the multi-label contrastive loss (method M4) over classes and surroundings together, and
    multiple instances: each patch votes for one word, and the words of a picture are those that a tenth of it is for.

    Args:
        model: the CLIP that is trained.
        bias: of the logits of the two poolings.
        tokens: of all words, in one template.
        batch: pictures of any sizes.
        residual_share: see `embed`.

    Returns:
        The sum, a scalar.
    """
    texts = functional.normalize(model.encode_text(tokens), dim=1)
    scores, votes, targets = [], [], []
    for size in sorted({picture.image.shape for picture in batch}):
        same = [picture for picture in batch if picture.image.shape == size]
        pixels = torch.stack([torch.from_numpy(picture.image.copy()).permute(2, 0, 1) for picture in same])
        mean, first, alone = embed(model, pixels, residual_share)
        scores.append(torch.stack([mean, first]) @ texts.T)
        shares = (model.logit_scale.exp() * alone @ texts.T).softmax(-1)
        votes.append(shares.topk(max(1, shares.shape[1] // 10), dim=1).values.mean(1))
        targets += [picture.words for picture in same]
    words = torch.from_numpy(np.stack(targets))
    known, present = ~words.isnan(), words == 1
    logits = model.logit_scale.exp() * torch.cat(scores, dim=1)
    total = torch.zeros(())
    for row, offset in zip(logits, bias, strict=True):
        each = functional.binary_cross_entropy_with_logits(
            row + offset, present.float(), pos_weight=torch.tensor(4.0), reduction="none"
        )
        rivals = row.masked_fill(present | ~known, -math.inf).logsumexp(1, keepdim=True)
        total = total + each[known].mean() + 0.5 * functional.softplus(rivals - row)[present].mean()
    vote = torch.cat(votes).clamp(1e-4, 1 - 1e-4)
    return total - vote[present].log().mean() - (1 - vote[known & ~present]).log().mean()


def train_clip(
    minutes: float, batch_size: int, start: CLIP | None, seed: int, rate: float
) -> tuple[CLIP, Int[Tensor, " rows"]]:
    """A trained CLIP, and the rows of its token embedding that were trained.

    Args:
        minutes: of wall time.
        batch_size: pictures a step.
        start: weights to begin with; None for random ones.
        seed: of the first scene.
        rate: the largest learning rate.

    Returns:
        The model, and indices of token rows.
    """
    torch.manual_seed(0)
    model, tokenizer = start or new_clip(), SimpleTokenizer()
    model.train().requires_grad_(True)
    tokens = {template: tokenizer([template.format(word) for word in WORDS]) for template in TEMPLATES}
    bias = nn.Parameter(torch.full((2,), -10.0))
    rng = np.random.default_rng(0)

    def loss(batch: list[Scene]) -> Float[Tensor, ""]:
        pictures = [picture(scene, rng, False) for scene in batch]
        pictures += [picture(scene, rng, True) for scene in batch for _ in range(CLOSE_UPS)]
        return clip_loss(model, bias, tokens[TEMPLATES[rng.integers(len(TEMPLATES))]], pictures)

    train([*model.parameters(), bias], loss, minutes, batch_size, rate, seed, AWAY_IN_CAPTIONS)
    return model, torch.cat([ids.flatten() for ids in tokens.values()]).unique()
