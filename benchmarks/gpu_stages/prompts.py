"""A step of prompt learning in every precision and cache, beside the authors' way, and its loss against the CPU's."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import torch

from benchmarks.gpu_stages.measure import Hour, counted, precision_context, timed
from benchmarks.prompt_step import Cache, Problem

CACHES: tuple[Cache, ...] = ("none", "input", "product")


def run(hour: Hour) -> None:
    """ViT-B/16, VOC's 45 prompts, batch 16 at 224 pixels."""
    batch = 2 if hour.tiny else 16
    for precision in ("float32",) if hour.tiny else ("float32", "tf32", "bfloat16"):
        precision_context(precision, hour.device)
        problem = Problem(batch, hour.device, "bfloat16" if precision == "bfloat16" else "float32")
        with problem.autocast():
            prepare_s = problem.prepare_product(1)
        for cache, is_replayed in itertools.product(CACHES, (False, True)):

            def step(
                number: int, cache: Cache = cache, problem: Problem = problem, is_replayed: bool = is_replayed
            ) -> Any:
                with problem.autocast():
                    return problem.ours(cache, is_replayed)

            times = timed(step, hour, at_least_s=1.0)
            counts = counted(step, hour)
            extra = {"prepare_s_per_image": prepare_s} if cache == "product" else {}
            hour.tell(
                "prompt step", precision=precision, cache=cache, replayed=is_replayed, batch=batch, **times, **counts,
                **extra,
                images_per_s=1000 * batch / times["ms_median"],
            )  # fmt: skip
        del problem
        gc.collect()
    precision_context("float32", hour.device)
    if not hour.tiny:
        problem = Problem(4, hour.device, "float32")
        for name, own in (("authors' way", problem.authors), ("ours", lambda: problem.ours("none"))):
            times = timed(lambda _, own=own: own(), hour, at_least_s=1.0)
            hour.tell("prompt step", precision="float32", cache=name, batch=4, **times)
    _equal(hour)


def _equal(hour: Hour) -> None:
    """The same problem on the CPU in float32: loss and gradient."""
    there = Problem(2, "cpu", "float32")
    expected_loss, expected = there.ours("none")
    for precision in ("float32", "bfloat16"):
        here = Problem(2, hour.device, precision)
        # Drawn on each device from the same seed, random numbers are not the same.
        here.model.load_state_dict(there.model.state_dict())
        here.learner.load_state_dict(there.learner.state_dict())
        here.pixels, here.target = there.pixels.to(hour.device), there.target.to(hour.device)
        with here.autocast():
            plain, own = here.ours("none")
            for _ in range(2):
                loss, gradient = here.ours("none", is_replayed=True)
        most = 1e-4 if precision == "float32" else 2e-2
        of_replay = float((gradient - own).norm() / own.norm())
        if not (torch.allclose(loss, plain, rtol=most) and of_replay < most):
            raise AssertionError(
                f"a replayed step in {precision} is not the plain one: its gradient is {of_replay:.1e} off"
            )
        error = float((loss.cpu() - expected_loss).abs() / expected_loss.abs())
        of_gradient = float((gradient.cpu().float() - expected).norm() / expected.norm())
        errors = {"loss_error": error, "gradient_error": of_gradient, "replay_error": of_replay}
        hour.tell("prompt step on the CPU", precision=precision, **errors)
        if not error < most:
            raise AssertionError(f"loss differs by {error:.1e} from the CPU's in {precision}; {most:.0e} is allowed")
