"""Trains the toy world's CLIP or SAM: `python -m fmwsss.core.toy.train clip|sam --minutes 15 --out DIR`.

CLIP sees image-level labels only, as the real one does: which classes and which surroundings a picture shows. SAM sees
points and masks. Every scene is drawn once and never again; tests and the demo use scenes that neither has seen
(`FIRST_TRAINING_SEED`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from open_clip import CLIP, SimpleTokenizer
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.toy.models import (
    IMAGE_PX,
    MASK_WIDTH,
    PATCH_PX,
    PIXEL_MEAN,
    PIXEL_STD,
    new_clip,
    new_sam,
    save_model,
    toy_clip,
    toy_sam,
)
from fmwsss.core.toy.world import AWAY_FROM_HOME, TOY, Scene, draw_scene

FIRST_TRAINING_SEED = 1_000_000
WORDS = (*TOY.classes, *TOY.backgrounds)
TEMPLATES = ("{}", "a photo of a {}.", "a clean origami {}.", "X X X X X X X X X X X X X X X X {}.", "{}.")
CLOSE_UP_PX, CLOSE_UPS = 48, 5
# A CLIP has seen every thing in more places than one data set shows; without that it learns the places alone.
AWAY_IN_CAPTIONS = 0.6
POINTS_ON_OBJECTS, POINTS_ON_BACKGROUND = 9, 3
LEVEL_WEIGHTS = torch.tensor([0.5, 1.0, 1.5])


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


def choose_points(
    scene: Scene, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "points 2"], Bool[np.ndarray, "points 3 height width"]]:
    """Points (x, y), evenly over the pieces of a scene rather than over its pixels, and the three masks at each.

    Args:
        scene: with its pieces on three levels.
        rng: which points.

    Returns:
        Points in pixels, and for each the masks of sub-part, part and whole.
    """
    points = []
    for is_object, count in ((True, POINTS_ON_OBJECTS), (False, POINTS_ON_BACKGROUND)):
        pieces = np.unique(scene.levels[0][(scene.truth > 0) == is_object])
        for piece in rng.choice(pieces, count) if len(pieces) else []:
            rows, columns = np.nonzero(scene.levels[0] == piece)
            index = rng.integers(len(rows))
            points.append((columns[index], rows[index]))
    while len(points) < POINTS_ON_OBJECTS + POINTS_ON_BACKGROUND:
        points.append(points[-1])
    chosen = np.array(points)
    values = scene.levels[:, chosen[:, 1], chosen[:, 0]]
    return chosen, scene.levels[None] == values.T[:, :, None, None]


class DenseHead(nn.Module):
    """Only for training: what every pixel is, and where pieces of each level end, read off the channels of the masks.

    Points alone teach slowly; the head is thrown away afterwards.
    """

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.num_words = num_words
        self.project = nn.Conv2d(MASK_WIDTH, num_words + 3, 1)

    def forward(
        self, model: Sam, features: Float[Tensor, "batch width 16 16"], batch: list[Scene]
    ) -> Float[Tensor, ""]:
        """Cross entropy of words and of edges, over every other pixel of the scenes.

        Args:
            model: the SAM that is trained.
            features: of its image encoder.
            batch: the scenes they are of.

        Returns:
            The sum, a scalar.
        """
        maps = self.project(model.mask_decoder.output_upscaling(features))
        total = torch.zeros(())
        for found, scene in zip(maps, batch, strict=True):
            levels = scene.levels.astype(np.int64)
            word = np.where(scene.truth > 0, scene.truth - 1, len(TOY.classes) + levels[2] - 1)[::2, ::2]
            edge = np.zeros(levels.shape, bool)
            edge[:, 1:] |= levels[:, 1:] != levels[:, :-1]
            edge[:, :, 1:] |= levels[:, :, 1:] != levels[:, :, :-1]
            edges = functional.max_pool2d(torch.from_numpy(edge).float(), 2, ceil_mode=True)
            found = found[:, : edges.shape[1], : edges.shape[2]]
            total = total + functional.cross_entropy(found[None, : self.num_words], torch.from_numpy(word)[None].long())
            total = total + functional.binary_cross_entropy_with_logits(found[self.num_words :], edges)
        return total / len(batch)


def encode(model: Sam, batch: list[Scene]) -> Float[Tensor, "batch width 16 16"]:
    """SAM's embedding of scenes; what is outside a scene is 0 after normalisation, as in `Sam.preprocess`.

    Args:
        model: the SAM that is trained.
        batch: scenes.

    Returns:
        Features of the image encoder.
    """
    pixels = torch.zeros(len(batch), 3, IMAGE_PX, IMAGE_PX)
    for target, scene in zip(pixels, batch, strict=True):
        height, width = scene.truth.shape
        target[:, :height, :width] = (torch.from_numpy(scene.image).permute(2, 0, 1) - PIXEL_MEAN) / PIXEL_STD
    return model.image_encoder(pixels)


def sam_loss(model: Sam, head: DenseHead, batch: list[Scene], rng: np.random.Generator) -> Float[Tensor, ""]:
    """Cross entropy and dice of the three masks at each point, output k against level k, and the error of the IoU.

    Args:
        model: the SAM that is trained.
        head: words and edges, for training alone.
        batch: scenes.
        rng: which points are asked for.

    Returns:
        The sum, a scalar.
    """
    features = encode(model, batch)
    chosen = [choose_points(scene, rng) for scene in batch]
    target = torch.zeros(len(batch), len(chosen[0][0]), 3, IMAGE_PX, IMAGE_PX)
    inside = torch.zeros(len(batch), 1, 1, IMAGE_PX, IMAGE_PX)
    for masks, window, scene, (_, of_points) in zip(target, inside, batch, chosen, strict=True):
        height, width = scene.truth.shape
        masks[..., :height, :width] = torch.from_numpy(of_points)
        window[..., :height, :width] = 1
    # At the decoder's own resolution, against the covered share of each cell: four times fewer numbers.
    target = functional.avg_pool2d(target.flatten(0, 1), 2).unflatten(0, target.shape[:2])
    inside = functional.avg_pool2d(inside.flatten(0, 1), 2).unflatten(0, inside.shape[:2])
    logits, predicted_iou = decode(model, features, np.stack([points for points, _ in chosen]))
    probability = logits.sigmoid() * inside
    area = (-2, -1)
    dice = 1 - (2 * (probability * target).sum(area) + 1) / (probability.sum(area) + target.sum(area) + 1)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside
    found, true = (logits.detach() > 0) & (inside > 0), target > 0.5
    iou = (found & true).sum(area) / (found | true).sum(area).clamp(min=1)
    each = 5 * cross_entropy.mean(area) + dice + (predicted_iou - iou).square()
    return (each * LEVEL_WEIGHTS).mean() + head(model, features, batch)


def decode(
    model: Sam, features: Float[Tensor, "batch width 16 16"], points: Int[np.ndarray, "batch points 2"]
) -> tuple[Float[Tensor, "batch points 3 64 64"], Float[Tensor, "batch points 3"]]:
    """The mask decoder on the points of several images at once; its own `forward` takes one image at a time.

    Args:
        model: the SAM that is trained.
        features: of its image encoder.
        points: x and y in pixels.

    Returns:
        Mask logits at half resolution, and the predicted IoU of each.
    """
    decoder: Any = model.mask_decoder
    num_points = points.shape[1]
    prompts = torch.as_tensor(points, dtype=torch.float32).flatten(0, 1)[:, None] + 0.5
    sparse, dense = model.prompt_encoder((prompts, torch.ones(len(prompts), 1, dtype=torch.int)), None, None)
    first = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(prompts), -1, -1)
    source = features.repeat_interleave(num_points, 0) + dense
    position = model.prompt_encoder.get_dense_pe().expand(len(prompts), -1, -1, -1)
    tokens, image = decoder.transformer(source, position, torch.cat([first, sparse], dim=1))
    upscaled = decoder.output_upscaling(image.transpose(1, 2).unflatten(2, source.shape[2:]))
    kernels = [decoder.output_hypernetworks_mlps[k](tokens[:, 1 + k]) for k in (1, 2, 3)]
    masks = torch.einsum("pkc,pchw->pkhw", torch.stack(kernels, dim=1), upscaled)
    predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
    return masks.unflatten(0, (len(points), -1)), predicted_iou.unflatten(0, (len(points), -1))


def train_sam(minutes: float, batch_size: int, start: Sam | None, seed: int, rate: float) -> Sam:
    """A trained SAM.

    Args:
        minutes: of wall time.
        batch_size: scenes a step.
        start: weights to begin with; None for random ones.
        seed: of the first scene.
        rate: the largest learning rate.

    Returns:
        The model.
    """
    torch.manual_seed(0)
    model, rng = start or new_sam(), np.random.default_rng(0)
    model.train().requires_grad_(True)
    head = DenseHead(len(WORDS))
    parameters = [*model.parameters(), *head.parameters()]
    if start is None:
        train(
            parameters,
            lambda batch: head(model, encode(model, batch), batch),
            0.15 * minutes,
            2 * batch_size,
            2 * rate,
            seed,
        )
    train(parameters, lambda batch: sam_loss(model, head, batch, rng), minutes, batch_size, rate, seed)
    return model


def train(
    parameters: Sequence[Tensor],
    loss_of: Callable[[list[Scene]], Tensor],
    minutes: float,
    batch_size: int,
    rate: float,
    seed: int,
    away_from_home: float = AWAY_FROM_HOME,
) -> None:
    """AdamW with warm-up and a cosine over wall time, so that the time given is the time taken.

    Args:
        parameters: that are learned.
        loss_of: scenes -> a scalar.
        minutes: of wall time.
        batch_size: scenes a step.
        rate: the largest learning rate.
        seed: of the first scene.
        away_from_home: share of objects in surroundings that are not their own, 0 to 1.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    started_s, first_seed, losses = time.monotonic(), seed, []
    while (share := (time.monotonic() - started_s) / (60 * minutes)) < 1:
        batch = [draw_scene(number, away_from_home) for number in range(seed, seed + batch_size)]
        seed += batch_size
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (len(losses) + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 25 == 0:
            print(
                f"{100 * share:.0f} %, {seed - first_seed} scenes, loss {np.mean(losses[-50:]):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("clip", "sam"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--go-on", action="store_true", help="start from the weights in the package")
    parser.add_argument("--seed", type=int, default=FIRST_TRAINING_SEED, help="of the first scene; new ones to go on")
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning, at its highest")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    schedule = (arguments.seed, arguments.rate)
    if arguments.model == "clip":
        trained, rows = train_clip(arguments.minutes, 12, toy_clip() if arguments.go_on else None, *schedule)
        save_model(trained, arguments.out / "clip.safetensors", rows)
    else:
        save_model(
            train_sam(arguments.minutes, 4, toy_sam() if arguments.go_on else None, *schedule),
            arguments.out / "sam.safetensors",
        )
