"""The loop in which the toy world's CLIP and SAM are trained, on scenes that are drawn once and never again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fmwsss.core.toy.world import AWAY_FROM_HOME, TOY, Scene, draw_scene

WORDS = (*TOY.classes, *TOY.backgrounds)


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
