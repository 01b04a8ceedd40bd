"""ViT-H's image encoder in every precision; random weights are as fast as trained ones."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_stages.measure import Hour, precision_context, roofline, timed
from benchmarks.gpu_stages.sam import vit_h

# Counted from the shapes at 1024 x 1024.
VIT_H_TFLOP = 5.95


def run(hour: Hour) -> None:
    """Float32, TF32, bfloat16, and bfloat16 compiled."""
    encoder: Any = vit_h(hour)
    side = encoder.img_size
    pixels = [torch.randn(1, 3, side, side, device=hour.device) for _ in range(3)]
    for precision, is_compiled in (("float32", False), ("tf32", False), ("bfloat16", False), ("bfloat16", True)):
        if is_compiled and hour.tiny:
            continue
        try:
            called = torch.compile(encoder, dynamic=False) if is_compiled else encoder
            with torch.inference_mode(), precision_context(precision, hour.device):
                step = lambda number, called=called: called(pixels[number % 3])  # noqa: E731
                times = timed(step, hour)
        except Exception as error:
            hour.tell("encode ViT-H", precision=precision, compiled=is_compiled, skipped=str(error)[:300])
            continue
        floor = {} if hour.tiny else roofline(hour, VIT_H_TFLOP, precision, times["ms_median"])
        hour.tell("encode ViT-H", precision=precision, compiled=is_compiled, size=[side, side], **times, **floor)
    precision_context("float32", hour.device)
