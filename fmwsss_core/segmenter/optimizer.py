"""How a segmenter is optimised: parameter groups, the polynomial schedule, one step (method M7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.memory_errors import is_out_of_memory
from fmwsss.core.segmenter.base import Segmenter

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS = (nn.LayerNorm, nn.GroupNorm, *BATCH_NORMS, nn.Embedding)
# Of Swin and of Mask2Former: position tables and the embeddings of levels and queries are parameters of other modules.
NO_DECAY = ("relative_position_bias_table", "absolute_pos_embed", "position_embeddings", "level_embed")


def parameter_groups(
    segmenter: Segmenter, learning_rate: float, weight_decay: float, backbone_multiplier: float
) -> list[dict[str, Any]]:
    """Parameters that are learned, in groups: the backbone at a fraction of the rate, no decay on norms and embeddings.

    Frozen parameters are in none. `base_lr` of a group is what the schedule multiplies.

    Args:
        segmenter: whose parameters are learned.
        learning_rate: of all but the backbone.
        weight_decay: of all but norms and embeddings.
        backbone_multiplier: of the backbone's rate.

    Returns:
        Groups for an optimizer of torch.
    """
    in_backbone = {id(parameter) for parameter in segmenter.backbone.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in segmenter.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            rate = learning_rate * (backbone_multiplier if id(parameter) in in_backbone else 1.0)
            decay = 0.0 if isinstance(module, NORMS) or name in NO_DECAY else weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def make_optimizer(
    segmenter: Segmenter,
    kind: Literal["adamw", "sgd"],
    learning_rate: float,
    weight_decay: float,
    backbone_multiplier: float,
) -> torch.optim.Optimizer:
    """AdamW for Mask2Former, SGD with momentum .9 for DeepLabV3+.

    Args:
        segmenter: whose parameters are learned.
        kind: which optimizer.
        learning_rate: of all but the backbone.
        weight_decay: of all but norms and embeddings.
        backbone_multiplier: of the backbone's rate.

    Returns:
        An optimizer whose groups have a `base_lr`.
    """
    groups = parameter_groups(segmenter, learning_rate, weight_decay, backbone_multiplier)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)


def poly_factor(iteration: int, num_iterations: int, power: float, warmup_iterations: int, floor: float = 0.0) -> float:
    """What the base rate is multiplied by: (1 - t / T)^power, and a linear rise over the first iterations.

    Args:
        iteration: t.
        num_iterations: T.
        power: of the polynomial.
        warmup_iterations: over which the factor rises linearly.
        floor: what it falls to, as a share of the base rate: floor + (1 - floor) (1 - t / T)^power (mmsegmentation's
            `min_lr` over its `lr`).
    """
    factor = floor + (1 - floor) * max(0.0, 1 - iteration / num_iterations) ** power
    return factor * min(1.0, (iteration + 1) / (warmup_iterations + 1))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the rate of every group to its base rate times `factor`.

    Args:
        optimizer: of `make_optimizer`.
        factor: of the schedule, 0 to 1.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def backward(
    segmenter: Segmenter,
    images: UInt8[Tensor, "batch 3 height width"],
    labels: UInt8[Tensor, "batch height width"],
    weights: Float[Tensor, "batch height width"] | None,
    random_seeds: Sequence[int],
    micro_batches: int | FittingBatch,
    precision: Literal["float32", "bfloat16"],
    sum_over_workers: Callable[[Tensor], Tensor],
    *,
    own_sums: Float[Tensor, " sums"] | None = None,
    before_pass: Callable[[bool], None] | None = None,
) -> dict[str, Tensor]:
    """Adds the gradient of one worker's share of a batch to the parameters; those of all shares add up to the batch's.

    Args:
        segmenter: in training mode.
        images: RGB.
        labels: 255 is ignored.
        weights: of the pixels, or None.
        random_seeds: one for each image.
        micro_batches: in how many pieces the share goes through the network, one after another; or pieces of a size
            that is halved where memory runs out: then the parameters' gradients begin again from nothing.
        precision: of the network; losses are always computed in float32.
        sum_over_workers: sums a tensor over all workers.
        own_sums: `measure` of this share, where it is known already.
        before_pass: called before each backward pass, with whether it is the last one.

    Returns:
        the parts of the loss of this share.

    Raises:
        torch.OutOfMemoryError: there is too little memory for a single image.
    """
    own_sums = segmenter.measure(labels, weights) if own_sums is None else own_sums
    totals = sum_over_workers(own_sums.to(images.device, non_blocking=True))
    while True:
        everything = torch.arange(len(images))
        is_fixed = isinstance(micro_batches, int)
        pieces = everything.chunk(micro_batches) if is_fixed else everything.split(micro_batches.size)
        try:
            return _backward(segmenter, images, labels, weights, totals, random_seeds, pieces, precision, before_pass)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or is_fixed or micro_batches.size == 1:
                raise
            micro_batches.size = min(micro_batches.size, len(images)) // 2
        # Not where the error is: it holds on to what was computed. Half of a gradient may be in the parameters.
        segmenter.zero_grad()


def _backward(
    segmenter: Segmenter,
    images: UInt8[Tensor, "batch 3 height width"],
    labels: UInt8[Tensor, "batch height width"],
    weights: Float[Tensor, "batch height width"] | None,
    totals: Tensor,
    random_seeds: Sequence[int],
    pieces: Sequence[Tensor],
    precision: Literal["float32", "bfloat16"],
    before_pass: Callable[[bool], None] | None,
) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for piece in pieces:
        where = slice(int(piece[0]), int(piece[-1]) + 1)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            losses = segmenter.losses(
                images[where],
                labels[where],
                weights[where] if weights is not None else None,
                totals,
                random_seeds[where],
            )
        if before_pass is not None:
            before_pass(piece is pieces[-1])
        torch.stack([*losses.values()]).sum().backward()
        for name, loss in losses.items():
            parts[name] = parts.get(name, 0) + loss.detach()
    return parts


def has_batch_norm(segmenter: Segmenter) -> bool:
    """Whether what an image becomes depends on those beside it, so that pieces of another size are another network."""
    return any(isinstance(module, BATCH_NORMS) and module.training for module in segmenter.modules())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
    """Scales all gradients together so that their norm is at most `max_norm`.

    Args:
        parameters: whose gradients are changed in place.
        max_norm: L2; None or 0 leaves them as they are.
    """
    if max_norm:
        torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
