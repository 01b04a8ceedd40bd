"""Softmax-GradCAM in its linear form: no backward pass inside the forward one (method M2 and M2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fmwsss.core.clip.last_block import LastBlock, MapProduct


@dataclass(frozen=True)
class RawClassMaps:
    """Raw class activation maps, one row per (image, present class), ordered by image and then class.

    Attributes:
        image: which image of the batch each row belongs to.
        class_index: foreground column of each row (0-based: class index minus 1).
        cam: raw map over the patch tokens (may be negative), differentiable to the text embeddings.
        logits: Y of M2 for every image and foreground class, differentiable to the text embeddings.
    """

    image: Int[Tensor, "rows"]
    class_index: Int[Tensor, "rows"]
    cam: Float[Tensor, "rows tokens"]
    logits: Float[Tensor, "batch classes"]


def class_scores(
    logits: Float[Tensor, "batch classes"],
    background_logits: Float[Tensor, "batch backgrounds"],
    present: Bool[Tensor, "batch classes"],
) -> Float[Tensor, "batch candidates"]:
    """Softmax over the classes present in the image and all backgrounds (M2); columns: classes, then backgrounds.

    Absent classes get 0; so does everything where an image has neither a class nor a background.

    Args:
        logits: image against class, before the softmax.
        background_logits: image against background.
        present: which classes the image's labels name.

    Returns:
        Probabilities; they sum to 1 over what an image's softmax has.
    """
    allowed = torch.cat([present, torch.ones_like(background_logits, dtype=torch.bool)], dim=1)
    # The lowest finite number instead of -inf: no nan, in value or gradient, where nothing is allowed.
    lowest = torch.finfo(logits.dtype).min
    masked = torch.cat([logits, background_logits], dim=1).masked_fill(~allowed, lowest)
    return torch.softmax(masked, dim=1) * allowed


def softmax_gradcam(
    block: LastBlock | MapProduct,
    logit_scale: float,
    foreground: Float[Tensor, "classes embed"],
    background: Float[Tensor, "backgrounds embed"],
    present: Bool[Tensor, "batch classes"],
) -> RawClassMaps:
    """CAM^c = F w^c with w^c the mean over patch tokens of d s^c / d F, for every present class (M2, CLIP-ES).

    The chain from prompts to map is linear in its last step (M2.1): u^c = scale s^c (t_c - sum_j s^j t_j) is an
    ordinary differentiable expression, and so is F J u, written out in `LastBlock`. Its memory grows with
    the rows, not with rows x batch, and no second derivative is taken.

    Args:
        block: of the images; not part of the graph.
        logit_scale: the CLIP's.
        foreground: L2-normalised text embeddings of the F classes.
        background: L2-normalised text embeddings of the background prompts; may be none.
        present: which classes each image shows. An image without any gives no row. Best on the host: which rows there
            are is then known without waiting for a device.
    """
    image, class_index = (index.to(block.embedding.device, non_blocking=True) for index in present.nonzero().unbind(1))
    present = present.to(block.embedding.device, non_blocking=True)
    logits = logit_scale * block.embedding @ foreground.T
    scores = class_scores(logits, logit_scale * block.embedding @ background.T, present)

    # t_c - sum_j s^j t_j as a sum over j != c, to avoid catastrophic cancellation when s^c is close to 1.
    others = scores[image].scatter(1, class_index[:, None], 0)
    pull = others.sum(dim=1, keepdim=True) * foreground[class_index] - others @ torch.cat([foreground, background])
    cotangent = logit_scale * scores[image, class_index][:, None] * pull

    return RawClassMaps(image, class_index, block.cam(cotangent, image), logits)


def normalise(cam: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    """ReLU, minus the minimum, divided by the maximum wherever that is positive, row by row (M2): values in 0..1.

    Where a class is clear its raw map is as small as s (1 - s) / N: a constant beside the maximum would flatten it.
    """
    cam = cam.clamp(min=0)
    cam = cam - cam.amin(dim=1, keepdim=True)
    highest = cam.amax(dim=1, keepdim=True)
    return cam / torch.where(highest > 0, highest, 1)
