"""The losses of M4, pair by pair and pixel by pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def multi_label_contrastive(logits: Tensor, present: Tensor) -> float | None:
    """None where there is no pair with an absent class."""
    costs = []
    for y, shown in zip(logits.tolist(), present.tolist(), strict=True):
        negatives = [math.exp(value) for value, is_shown in zip(y, shown, strict=True) if not is_shown]
        for value, is_shown in zip(y, shown, strict=True):
            if is_shown and negatives:
                costs.append(-value + math.log(math.exp(value) + sum(negatives)))
    return sum(costs) / len(costs) if costs else None


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
    cam_maps: Tensor, labels: Tensor, image: Tensor, class_index: Tensor, is_relative: bool = False
) -> float | None:
    """None where no image of a row shows foreground."""
    total, num_valid = 0.0, 0
    for k in range(len(cam_maps)):
        label = labels[image[k]].tolist()
        flat = [value for row in label for value in row]
        if not any(value not in (0, 255) for value in flat):
            continue
        size = (len(label), len(label[0]))
        up = functional.interpolate(cam_maps[k][None, None], size=size, mode="bilinear", align_corners=False)
        cam = torch.flatten(up).tolist()
        c = int(class_index[k]) + 1
        lifted = max([0.0, *(value for value, at in zip(cam, flat, strict=True) if at == c)])
        scale = max(abs(value) for value in cam) if is_relative else 1.0
        for value, at in zip(cam, flat, strict=True):
            if at == c:
                total += abs(lifted - value) / scale
            elif at != 255:
                total += max(value, 0.0) / scale
            num_valid += at != 255
    return total / num_valid if num_valid else None
