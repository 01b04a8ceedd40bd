"""Mask2Former's losses one image after another, as they were before all images went through each operation together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from fmwsss.core.labels import IGNORE
from fmwsss.core.segmenter.mask_criterion import CriterionSettings


@dataclass(frozen=True)
class Targets:
    """What one image should become: one mask per class in it.

    Attributes:
        classes: class indices, ascending.
        labels: class of each pixel, 255 where it is ignored.
        weights: of each pixel, 0 where it is ignored.
    """

    classes: Int64[Tensor, " classes"]
    labels: UInt8[Tensor, "height width"]
    weights: Float[Tensor, "height width"]


def make_targets(
    labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
) -> list[Targets]:
    """Targets of each image; without `weights` every pixel that is not 255 counts 1."""
    valid = (labels != IGNORE).float()
    weights = valid if weights is None else weights * valid
    made = []
    for own, weight in zip(labels, weights, strict=True):
        classes = torch.unique(own[weight > 0]).long()
        made.append(Targets(classes, own, weight))
    return made


def count_targets(targets: Sequence[Targets]) -> Float[Tensor, "2"]:
    """Masks to be learned, and images with any: the sums that losses are divided by.

    They add up over workers and over micro-batches, so that dividing by the whole batch's gives one and the same
    gradient however the batch was cut up.
    """
    counts = [len(target.classes) for target in targets]
    return torch.tensor([float(sum(counts)), float(sum(count > 0 for count in counts))])


def mask2former_losses(
    class_logits: Float[Tensor, "layers batch queries classes_and_none"],
    mask_logits: Float[Tensor, "layers batch queries grid_height grid_width"],
    targets: Sequence[Targets],
    totals: Float[Tensor, "2"],
    random_seeds: Sequence[int],
    settings: CriterionSettings,
) -> dict[str, Float[Tensor, ""]]:
    """Weighted losses `class`, `mask` and `dice`, each summed over the decoder's layers.

    Per layer, predictions are matched to targets one to one at the least total cost, then
        class = 2 (sum over queries of w CE) / (masks + .1 (images * queries - masks)),  w = .1 for no object
        mask  = 5 (sum over masks of the mean BCE over its points) / masks
        dice  = 5 (sum over masks of 1 - (2 sum p t + 1) / (sum p + sum t + 1)) / masks
    where means and sums over points carry the pixels' weights, and labels are read at the pixel a point lies in. A
    query without a match that lies on ignored pixels may well be right: its `no object` counts by the share of its mask
    on pixels that are not ignored. An image without any valid pixel contributes nothing.

    Args:
        class_logits: of every layer of the decoder; the last class is `no object`.
        mask_logits: of every layer, on the network's own grid.
        targets: of each image, on the same device.
        totals: `count_targets`, summed over the whole batch.
        random_seeds: of each image's points, so that they depend neither on the batch nor on the worker.
        settings: weights and numbers of points.
    """
    device = mask_logits.device
    num_layers, _, num_queries = class_logits.shape[:3]
    num_masks, num_images = (float(value) for value in totals)
    class_total = max(num_masks + settings.no_object_weight * (num_images * num_queries - num_masks), 1e-6)
    zero = class_logits.sum() * 0 + mask_logits.sum() * 0
    sums = {"class": zero, "mask": zero, "dice": zero}
    for index, (target, seed) in enumerate(zip(targets, random_seeds, strict=True)):
        if len(target.classes) == 0:
            continue
        generator = torch.Generator(device).manual_seed(seed)
        own_classes, own_masks = class_logits[:, index].float(), mask_logits[:, index].float()
        chosen = _match(own_classes, own_masks, target, generator, settings)
        layers = torch.arange(num_layers, device=device)[:, None]
        matched = own_masks[layers, chosen].flatten(0, 1)
        wanted = target.classes.repeat(num_layers)
        bce, dice = _mask_losses(matched, wanted, target, generator, settings)
        sums["mask"] = sums["mask"] + bce
        sums["dice"] = sums["dice"] + dice
        sums["class"] = sums["class"] + _class_loss(own_classes, own_masks, chosen, target, settings)
    return {
        "class": settings.class_weight * sums["class"] / class_total,
        "mask": settings.mask_weight * sums["mask"] / max(num_masks, 1.0),
        "dice": settings.dice_weight * sums["dice"] / max(num_masks, 1.0),
    }


@torch.no_grad()
def _match(
    class_logits: Float[Tensor, "layers queries classes_and_none"],
    mask_logits: Float[Tensor, "layers queries grid_height grid_width"],
    target: Targets,
    generator: torch.Generator,
    settings: CriterionSettings,
) -> Int64[Tensor, "layers classes"]:
    """The query of every layer that each class is given to, at the least total cost."""
    points = torch.rand(settings.num_points, 2, generator=generator, device=mask_logits.device)
    logits = sample_logits(mask_logits, points.expand(len(mask_logits), -1, -1))
    labels, weights = read_pixels(target, points)
    wanted = (labels[None] == target.classes[:, None]).float()  # classes x points
    weights = weights / weights.sum().clamp(min=1e-6)
    positive, negative = functional.softplus(-logits) * weights, functional.softplus(logits) * weights
    cost_mask = positive @ wanted.T + negative @ (1 - wanted).T
    share = logits.sigmoid() * weights * settings.num_points
    weighted = wanted * weights * settings.num_points
    overlap = 2 * (share @ wanted.T)
    cost_dice = 1 - (overlap + 1) / (share.sum(-1)[..., None] + weighted.sum(-1) + 1)
    cost_class = -class_logits.softmax(-1)[..., target.classes]
    cost = settings.class_weight * cost_class + settings.mask_weight * cost_mask + settings.dice_weight * cost_dice
    chosen = []
    for layer in cost.nan_to_num(1e6, 1e6, 1e6).cpu().numpy():
        queries, order = linear_sum_assignment(layer)
        chosen.append(torch.from_numpy(queries[order.argsort()]))
    return torch.stack(chosen).to(mask_logits.device)


def _mask_losses(
    logits: Float[Tensor, "masks grid_height grid_width"],
    wanted: Int64[Tensor, " masks"],
    target: Targets,
    generator: torch.Generator,
    settings: CriterionSettings,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    points = _uncertain_points(logits, target, generator, settings)
    at_points = sample_logits(logits[:, None], points)[:, 0]
    labels, weights = read_pixels(target, points)
    truth = (labels == wanted[:, None]).float()
    total = weights.sum(1).clamp(min=1e-6)
    bce = functional.binary_cross_entropy_with_logits(at_points, truth, reduction="none")
    mask_loss = ((bce * weights).sum(1) / total).sum()
    share = at_points.sigmoid() * weights
    dice = 1 - (2 * (share * truth).sum(1) + 1) / (share.sum(1) + (truth * weights).sum(1) + 1)
    return mask_loss, dice.sum()


def _class_loss(
    class_logits: Float[Tensor, "layers queries classes_and_none"],
    mask_logits: Float[Tensor, "layers queries grid_height grid_width"],
    chosen: Int64[Tensor, "layers classes"],
    target: Targets,
    settings: CriterionSettings,
) -> Float[Tensor, ""]:
    nothing = class_logits.shape[-1] - 1
    labels = torch.full(class_logits.shape[:2], nothing, dtype=torch.int64, device=class_logits.device)
    labels.scatter_(1, chosen, target.classes.expand(len(chosen), -1))
    weights = torch.full_like(labels, settings.no_object_weight, dtype=torch.float32)
    if bool((target.weights == 0).any()):
        valid = functional.interpolate(
            (target.weights > 0).float()[None, None], size=mask_logits.shape[-2:], mode="area"
        )[0, 0]
        share = mask_logits.detach().sigmoid()
        weights = weights * (share * valid).sum((-2, -1)) / share.sum((-2, -1)).clamp(min=1e-6)
    weights = weights.scatter(1, chosen, 1.0)
    entropy = functional.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (entropy * weights.flatten()).sum()


@torch.no_grad()
def _uncertain_points(
    logits: Float[Tensor, "masks grid_height grid_width"],
    target: Targets,
    generator: torch.Generator,
    settings: CriterionSettings,
) -> Float[Tensor, "masks points 2"]:
    """Points of PointRend: of three times as many the least certain three quarters, and a quarter at random.

    Of ignored pixels none is taken as long as there are others.
    """
    num_candidates = int(settings.num_points * settings.oversample)
    num_uncertain = int(settings.num_points * settings.importance)
    candidates = torch.rand(len(logits), num_candidates, 2, generator=generator, device=logits.device)
    certainty = sample_logits(logits[:, None], candidates)[:, 0].abs()
    certainty[read_pixels(target, candidates)[1] == 0] = torch.inf
    best = certainty.topk(num_uncertain, dim=1, largest=False).indices
    uncertain = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    num_random = settings.num_points - num_uncertain
    others = torch.rand(len(logits), num_random, 2, generator=generator, device=logits.device)
    return torch.cat([uncertain, others], dim=1)


def sample_logits(
    logits: Float[Tensor, "masks channels grid_height grid_width"], points: Float[Tensor, "masks points 2"]
) -> Float[Tensor, "masks channels points"]:
    """Values between the cells of a grid, bilinearly; points are (x, y) in 0..1 over the image."""
    return functional.grid_sample(logits, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def read_pixels(
    target: Targets, points: Float[Tensor, "*shape 2"]
) -> tuple[UInt8[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Class and weight of the pixel each point lies in: between pixels there is no class, and none near a 255."""
    height, width = target.labels.shape
    columns = (points[..., 0] * width).long().clamp(max=width - 1)
    rows = (points[..., 1] * height).long().clamp(max=height - 1)
    return target.labels[rows, columns], target.weights[rows, columns]
