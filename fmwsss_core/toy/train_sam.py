"""Trains the toy world's SAM, which sees points and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.toy.models import IMAGE_PX, MASK_WIDTH, PIXEL_MEAN, PIXEL_STD, new_sam
from fmwsss.core.toy.training_loop import WORDS, train
from fmwsss.core.toy.world import TOY, Scene

POINTS_ON_OBJECTS, POINTS_ON_BACKGROUND = 9, 3
LEVEL_WEIGHTS = torch.tensor([0.5, 1.0, 1.5])


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
