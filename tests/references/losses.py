"""The losses of M4, pair by pair and pixel by pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def multi_label_contrastive(logits: Tensor, present: Tensor, mean_over: str = "batch") -> float | None:
    """None where there is no pair with an absent class; image by image first where the paper has it so."""
    per_image = []
    for y, shown in zip(logits.tolist(), present.tolist(), strict=True):
        negatives = [math.exp(value) for value, is_shown in zip(y, shown, strict=True) if not is_shown]
        costs = []
        for value, is_shown in zip(y, shown, strict=True):
            if is_shown and negatives:
                costs.append(-value + math.log(math.exp(value) + sum(negatives)))
        if costs:
            per_image.append(costs)
    if not per_image:
        return None
    if mean_over == "image":
        return sum(sum(costs) / len(costs) for costs in per_image) / len(per_image)
    return sum(map(sum, per_image)) / sum(map(len, per_image))


def binary_cross_entropy(logits: Tensor, present: Tensor) -> float:
    """Over every pair of an image and a class."""
    costs = []
    for y, shown in zip(logits.flatten().tolist(), present.flatten().tolist(), strict=True):
        costs.append(math.log1p(math.exp(-y if shown else y)))
    return sum(costs) / len(costs)


def pixel_cross_entropy(cam_maps: Tensor, labels: Tensor, image: Tensor, class_index: Tensor) -> float | None:
    """None where no image of a row shows foreground."""
    total, num_valid = 0.0, 0
    for k in range(len(cam_maps)):
        label = labels[image[k]]
        if not any(value not in (0, 255) for value in label.flatten().tolist()):
            continue
        size = (label.shape[0], label.shape[1])
        up = functional.interpolate(cam_maps[k][None, None], size=size, mode="bilinear", align_corners=False)
        for value, at in zip(up.flatten().tolist(), label.flatten().tolist(), strict=True):
            if at != 255:
                total += math.log1p(math.exp(-value if at == int(class_index[k]) + 1 else value))
                num_valid += 1
    return total / num_valid if num_valid else None


def cam_activation(
    cam_maps: Tensor,
    labels: Tensor,
    image: Tensor,
    class_index: Tensor,
    is_relative: bool = False,
    is_rectified: bool = False,
    mean_over: str = "batch",
) -> float | None:
    """None where no image of a row shows foreground."""
    total, num_valid = 0.0, 0
    of_image: dict[int, list[float]] = {}
    for k in range(len(cam_maps)):
        label = labels[image[k]].tolist()
        flat = [value for row in label for value in row]
        if not any(value not in (0, 255) for value in flat):
            continue
        size = (len(label), len(label[0]))
        up = functional.interpolate(cam_maps[k][None, None], size=size, mode="bilinear", align_corners=False)
        cam = torch.flatten(up).tolist()
        if is_rectified:
            cam = [max(value, 0.0) for value in cam]
        before = total
        c = int(class_index[k]) + 1
        lifted = max([0.0, *(value for value, at in zip(cam, flat, strict=True) if at == c)])
        scale = max(1e-12, *(abs(value) for value in cam)) if is_relative else 1.0
        for value, at in zip(cam, flat, strict=True):
            if at == c:
                total += abs(lifted - value) / scale
            elif at != 255:
                total += max(value, 0.0) / scale
            num_valid += at != 255
        of_image.setdefault(int(image[k]), []).append((total - before) / len(flat))
    if mean_over == "image":
        means = [sum(costs) / len(costs) for costs in of_image.values()]
        return sum(means) / len(means) if means else None
    return total / num_valid if num_valid else None


def differentiable_cam_activation_of_batch(cams: Tensor, labels: Tensor, image: Tensor, class_index: Tensor) -> Tensor:
    """CAL as the authors have it (M4: raw maps, all valid pixels), for autograd; maps on the grid of the labels."""
    costs, num_valid = [], 0
    for k in range(len(cams)):
        label = labels[image[k]]
        if ((label > 0) & (label != 255)).any():
            own, other = label == int(class_index[k]) + 1, (label != int(class_index[k]) + 1) & (label != 255)
            if own.any():
                costs.append((cams[k][own].max().clamp(min=0).detach() - cams[k][own]).abs().sum())
            costs.append(cams[k][other].relu().sum())
            num_valid += int((label != 255).sum())
    return torch.stack(costs).sum() / num_valid


def differentiable_cam_activation(cams: Tensor, labels: Tensor, image: Tensor, class_index: Tensor) -> Tensor:
    """CAL as the paper writes it (M4: rectified maps, |P| H W of each image), image by image, for autograd.

    `cams` are on the grid of the labels already.
    """
    per_image = []
    for i in range(len(labels)):
        label, rows = labels[i], (image == i).nonzero()[:, 0].tolist()
        if not rows or not ((label > 0) & (label != 255)).any():
            continue
        cost = cams.new_zeros(())
        for k in rows:
            rectified, own = cams[k].relu(), label == int(class_index[k]) + 1
            if own.any():
                cost = cost + (rectified[own].max().detach() - rectified[own]).abs().sum()
            cost = cost + rectified[~own & (label != 255)].sum()
        per_image.append(cost / (len(rows) * label.numel()))
    return torch.stack(per_image).mean()
