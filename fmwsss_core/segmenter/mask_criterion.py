"""Mask2Former's set criterion with an ignore index: ignored pixels are excluded from matching and point sampling.

Neither the original nor `transformers` excludes them from the mask losses; seeds have pixels of 255, and crops are
padded with it (method M7: class 2 with .1 for no object, mask 5, dice 5, 12544 points, oversample 3, importance .75).

All images and all layers of the decoder go through each operation together: one by one, a step would be thousands of
launches of a GPU, longer than their work. Tensors over all points of all masks are made a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from fmwsss.core.labels import IGNORE

AT_ONCE = 1 << 26  # numbers in a tensor over points or pixels of many masks: 256 MiB in float32


@dataclass(frozen=True)
class CriterionSettings:
    """Weights and sampling of the loss (method M7); the weights are also those of the matching."""

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True)
class Targets:
    """What the images of a batch should become: one mask for each class in an image.

    Attributes:
        classes: class indices in each image, ascending; numbers of the host, for none waits for a device.
        labels: class of each pixel, 255 where it is ignored.
        weights: of each pixel, 0 where it is ignored.
    """

    classes: tuple[tuple[int, ...], ...]
    labels: UInt8[Tensor, "batch height width"]
    weights: Float[Tensor, "batch height width"]


def make_targets(
    labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
) -> Targets:
    """Targets of each image; without `weights` every pixel that is not 255 counts 1. A device is waited for once.

    Args:
        labels: class indices; 255 is ignored.
        weights: of each pixel, 0 to 1; None for 1.

    Returns:
        Classes, labels and weights.
    """
    valid = (labels != IGNORE).float()
    return Targets(classes_in(labels, weights), labels, valid if weights is None else weights * valid)


def classes_in(
    labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
) -> tuple[tuple[int, ...], ...]:
    """Class indices, ascending, of each image: of its pixels that are not 255 and weigh anything.

    Args:
        labels: class indices; 255 is ignored.
        weights: of each pixel, 0 to 1; None for 1.

    Returns:
        A tuple for each image; 0 is background.
    """
    counted = labels if weights is None else torch.where(weights > 0, labels, torch.full_like(labels, IGNORE))
    # No histogram over the class: its size would depend on the content, and a device would be waited for twice.
    found = torch.zeros(len(labels), 256, dtype=torch.uint8, device=labels.device)
    found.scatter_(1, counted.flatten(1).long(), 1)
    return tuple(tuple(index for index in range(IGNORE) if row[index]) for row in found.tolist())


def count_targets(classes: Sequence[Sequence[int]]) -> Float[Tensor, "2"]:
    """Masks to be learned, and images with any: the sums that losses are divided by.

    They add up over workers and over micro-batches, so that dividing by the whole batch's gives one and the same
    gradient however the batch was cut up.

    Args:
        classes: `classes_in`, or those of `Targets`.
    """
    counts = [len(own) for own in classes]
    return torch.tensor([float(sum(counts)), float(sum(count > 0 for count in counts))])


@dataclass(frozen=True)
class _Masks:
    """The masks to be learned of all images, one after another; in each image layer by layer, in each layer by class.

    Attributes:
        per_image: how many there are of each image.
        image, layer, query: where each is predicted.
        wanted: its class.
    """

    per_image: tuple[int, ...]
    image: Int64[Tensor, " masks"]
    layer: Int64[Tensor, " masks"]
    query: Int64[Tensor, " masks"]
    wanted: Int64[Tensor, " masks"]


def mask2former_losses(
    class_logits: Float[Tensor, "layers batch queries classes_and_none"],
    mask_logits: Float[Tensor, "layers batch queries grid_height grid_width"],
    targets: Targets,
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

    A device is waited for once, for the costs of the matching.

    Args:
        class_logits: of every layer of the decoder; the last class is `no object`.
        mask_logits: of every layer, on the network's own grid.
        targets: of each image, on the same device.
        totals: `count_targets`, summed over the whole batch; on any device.
        random_seeds: of each image's points, so that they depend neither on the batch nor on the worker.
        settings: weights and numbers of points.
    """
    class_logits, mask_logits = class_logits.float(), mask_logits.float()
    num_queries = class_logits.shape[2]
    num_masks, num_images = totals.to(mask_logits.device, non_blocking=True)
    class_total = (num_masks + settings.no_object_weight * (num_images * num_queries - num_masks)).clamp(min=1e-6)
    if not any(targets.classes):
        # Of the network nonetheless: workers wait for each other's gradients.
        zero = class_logits.sum() * 0 + mask_logits.sum() * 0
        sums = {"class": zero, "mask": zero, "dice": zero}
    else:
        generators = [torch.Generator(mask_logits.device).manual_seed(seed) for seed in random_seeds]
        masks, share_valid = _match(class_logits, mask_logits, targets, generators, settings)
        bce, dice = _mask_losses(mask_logits, masks, targets, generators, settings)
        sums = {"class": _class_loss(class_logits, masks, share_valid, targets, settings), "mask": bce, "dice": dice}
    return {
        "class": settings.class_weight * sums["class"] / class_total,
        "mask": settings.mask_weight * sums["mask"] / num_masks.clamp(min=1.0),
        "dice": settings.dice_weight * sums["dice"] / num_masks.clamp(min=1.0),
    }


@torch.no_grad()
def _match(
    class_logits: Float[Tensor, "layers batch queries classes_and_none"],
    mask_logits: Float[Tensor, "layers batch queries grid_height grid_width"],
    targets: Targets,
    generators: Sequence[torch.Generator],
    settings: CriterionSettings,
) -> tuple[_Masks, Float32[Tensor, "layers batch queries"]]:
    """The query of every layer that each class is given to, at the least total cost.

    Also the share of each predicted mask on pixels that are not ignored, 1 in an image without ignored ones.
    """
    num_layers, num_images, num_queries = class_logits.shape[:3]
    device, grid = mask_logits.device, mask_logits.shape[-2:]
    points = torch.empty(num_images, settings.num_points, 2, device=device)
    for own, classes, generator in zip(points, targets.classes, generators, strict=True):
        if classes:
            own.uniform_(generator=generator)
        else:
            own.zero_()
    padded = _padded(targets.classes, device)
    labels, weights = read_pixels(targets, torch.arange(num_images, device=device)[:, None], points)
    truth = (labels[:, :, None] == padded[:, None, :]).float()  # images x points x classes
    weights = (weights / weights.sum(1, keepdim=True).clamp(min=1e-6))[:, None]
    num_weighted = (truth * weights.mT * settings.num_points).sum(1)
    valid = functional.interpolate((targets.weights > 0).float()[:, None], size=grid, mode="area")[:, 0]
    has_ignored = (targets.weights == 0).flatten(1).any(1)

    costs, shares = [], []
    numbers = num_images * num_queries * max(settings.num_points, grid.numel())
    for layers in torch.arange(num_layers).split(max(1, AT_ONCE // numbers)):
        some = slice(int(layers[0]), int(layers[-1]) + 1)
        own_masks = mask_logits[some]
        logits = sample_logits(own_masks.flatten(0, 1), points.repeat(len(layers), 1, 1))
        logits = logits.unflatten(0, (len(layers), num_images))
        positive = functional.softplus(-logits).mul_(weights)
        negative = functional.softplus(logits).mul_(weights)
        cost_mask = positive @ truth + negative @ (1 - truth)
        share = logits.sigmoid_().mul_(weights).mul_(settings.num_points)
        cost_dice = 1 - (2 * (share @ truth) + 1) / (share.sum(-1)[..., None] + num_weighted[:, None] + 1)
        del logits, positive, negative, share
        index = padded[:, None].expand(len(layers), -1, num_queries, -1)
        cost_class = -class_logits[some].softmax(-1).gather(-1, index)
        costs.append(
            settings.class_weight * cost_class + settings.mask_weight * cost_mask + settings.dice_weight * cost_dice
        )
        share = own_masks.sigmoid()
        total = share.sum((-2, -1)).clamp_(min=1e-6)
        shares.append((share.mul_(valid[:, None]).sum((-2, -1)) / total).where(has_ignored[:, None], 1.0))
    return _assign(torch.cat(costs), targets, device), torch.cat(shares)


def _padded(classes: Sequence[Sequence[int]], device: torch.device) -> Int64[Tensor, "batch classes"]:
    """Class indices of all images in one table; 0 where an image has fewer than others."""
    longest = max(map(len, classes))
    return torch.tensor([[*own, *[0] * (longest - len(own))] for own in classes]).to(device, non_blocking=True)


def _assign(cost: Float[Tensor, "layers batch queries classes"], targets: Targets, device: torch.device) -> _Masks:
    """One query for each class in each image and layer; costs come from the device in one piece, and go back so."""
    table = cost.nan_to_num(1e6, 1e6, 1e6).cpu().numpy()
    found: list[tuple[int, int, int, int]] = []
    for image, classes in enumerate(targets.classes):
        for layer in range(len(table)) if classes else ():
            queries, order = linear_sum_assignment(table[layer, image, :, : len(classes)])
            own = queries[order.argsort()].tolist()
            found += [(image, layer, query, wanted) for query, wanted in zip(own, classes, strict=True)]
    columns = torch.tensor(found).T.contiguous().to(device, non_blocking=True)
    return _Masks(tuple(len(table) * len(classes) for classes in targets.classes), *columns)


def _mask_losses(
    mask_logits: Float[Tensor, "layers batch queries grid_height grid_width"],
    masks: _Masks,
    targets: Targets,
    generators: Sequence[torch.Generator],
    settings: CriterionSettings,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    _, num_images, num_queries = mask_logits.shape[:3]
    # By one index, and each but once: the backward pass adds nothing up, in whatever order.
    place = (masks.layer * num_images + masks.image) * num_queries + masks.query
    logits = mask_logits.flatten(0, 2).index_select(0, place)
    points = _uncertain_points(logits.detach(), masks, targets, generators, settings)
    at_points = sample_logits(logits[:, None], points)[:, 0]
    labels, weights = read_pixels(targets, masks.image[:, None], points)
    truth = (labels == masks.wanted[:, None]).float()
    total = weights.sum(1).clamp(min=1e-6)
    bce = functional.binary_cross_entropy_with_logits(at_points, truth, reduction="none")
    mask_loss = ((bce * weights).sum(1) / total).sum()
    share = at_points.sigmoid() * weights
    dice = 1 - (2 * (share * truth).sum(1) + 1) / (share.sum(1) + (truth * weights).sum(1) + 1)
    return mask_loss, dice.sum()


def _class_loss(
    class_logits: Float[Tensor, "layers batch queries classes_and_none"],
    masks: _Masks,
    share_valid: Float32[Tensor, "layers batch queries"],
    targets: Targets,
    settings: CriterionSettings,
) -> Float[Tensor, ""]:
    labels = torch.full_like(share_valid, class_logits.shape[-1] - 1, dtype=torch.int64)
    where = (masks.layer, masks.image, masks.query)
    labels.index_put_(where, masks.wanted)
    weights = settings.no_object_weight * share_valid
    weights.index_put_(where, torch.ones_like(masks.wanted, dtype=torch.float32))
    if not all(targets.classes):
        has_any = torch.tensor([float(bool(classes)) for classes in targets.classes])
        weights = weights * has_any.to(weights.device, non_blocking=True)[:, None]
    entropy = functional.cross_entropy(class_logits.flatten(0, 2), labels.flatten(), reduction="none")
    return (entropy * weights.flatten()).sum()


@torch.no_grad()
def _uncertain_points(
    logits: Float[Tensor, "masks grid_height grid_width"],
    masks: _Masks,
    targets: Targets,
    generators: Sequence[torch.Generator],
    settings: CriterionSettings,
) -> Float[Tensor, "masks points 2"]:
    """Points of PointRend: of three times as many the least certain three quarters, and a quarter at random.

    Of ignored pixels none is taken as long as there are others.
    """
    num_candidates = int(settings.num_points * settings.oversample)
    num_uncertain = int(settings.num_points * settings.importance)
    best = []
    for images, some in _pieces(masks.per_image, num_candidates):
        candidates = _drawn(num_candidates, masks, images, generators, logits.device)
        certainty = sample_logits(logits[some, None], candidates)[:, 0].abs_()
        is_ignored = read_pixels(targets, masks.image[some, None], candidates)[1] == 0
        certainty.masked_fill_(is_ignored, torch.inf)
        least = certainty.topk(num_uncertain, dim=1, largest=False).indices
        best.append(candidates.gather(1, least[..., None].expand(-1, -1, 2)))
    everywhere = range(len(masks.per_image))
    others = _drawn(settings.num_points - num_uncertain, masks, everywhere, generators, logits.device)
    return torch.cat([torch.cat(best), others], dim=1)


def _drawn(
    num_points: int,
    masks: _Masks,
    images: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> Float[Tensor, "masks points 2"]:
    """Points at random for all masks of some images, each image's from its own generator."""
    counts = [masks.per_image[image] for image in images]
    points = torch.empty(sum(counts), num_points, 2, device=device)
    for image, own in zip(images, points.split(counts), strict=True):
        if own.numel():
            own.uniform_(generator=generators[image])
    return points


def _pieces(per_image: Sequence[int], numbers_per_mask: int) -> Iterator[tuple[list[int], slice]]:
    """Images whose masks go together, and which masks these are; an image is in one piece."""
    images: list[int] = []
    begin = end = 0
    for image, count in enumerate(per_image):
        if images and (end + count - begin) * numbers_per_mask > AT_ONCE:
            yield images, slice(begin, end)
            images, begin = [], end
        images.append(image)
        end += count
    if end > begin:
        yield images, slice(begin, end)


def sample_logits(
    logits: Float[Tensor, "masks channels grid_height grid_width"], points: Float[Tensor, "masks points 2"]
) -> Float[Tensor, "masks channels points"]:
    """Values between the cells of a grid, bilinearly; points are (x, y) in 0..1 over the image.

    Args:
        logits: a grid for each mask.
        points: x and y of each point, 0 to 1.

    Returns:
        A value for each point.
    """
    return functional.grid_sample(logits, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def read_pixels(
    targets: Targets, image: Int64[Tensor, "rows 1"], points: Float[Tensor, "rows points 2"]
) -> tuple[UInt8[Tensor, "rows points"], Float[Tensor, "rows points"]]:
    """Class and weight of the pixel each point lies in: between pixels there is no class, and none near a 255.

    Args:
        targets: of the batch.
        image: which image the points of each row are of.
        points: (x, y) in 0..1 over the image.
    """
    height, width = targets.labels.shape[-2:]
    columns = (points[..., 0] * width).long().clamp_(max=width - 1)
    rows = (points[..., 1] * height).long().clamp_(max=height - 1)
    place = rows.add_(image * height).mul_(width).add_(columns)
    return targets.labels.flatten()[place], targets.weights.flatten()[place]
