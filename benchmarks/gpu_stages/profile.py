"""Timelines of one detection, one prompt step and one training step: the longest kernels, launches, waits."""

from __future__ import annotations

import torch

from benchmarks.gpu_stages.measure import Hour, counted, precision_context
from benchmarks.gpu_stages.sam import load, settings_of
from benchmarks.gpu_stages.segmenter import batch_of, segmenter_of
from benchmarks.prompt_step import Problem
from fmwsss.core.segmenter.optimizer import backward
from fmwsss.core.superpixels.sam import detect


def run(hour: Hour) -> None:
    """Writes a compressed trace of each beside the figures."""
    precision_context("float32", hour.device)
    sam, images = load(hour), hour.photographs(2)
    settings = settings_of(hour, points_per_side=32)
    found = counted(lambda number: detect(sam, images[number % 2], settings), hour, 1, "detect")
    hour.tell("profile of a detection", **found)
    del sam

    problem = Problem(2 if hour.tiny else 16, hour.device, "bfloat16")

    def prompt_step(_: int) -> None:
        with problem.autocast():
            problem.ours("none")

    hour.tell("profile of a prompt step", **counted(prompt_step, hour, 1, "prompts"))
    del problem

    side, count = (64, 2) if hour.tiny else (512, 4)
    segmenter = segmenter_of("tiny" if hour.tiny else "swin-l", side).to(hour.device).train()
    pixels, labels = (values.to(hour.device) for values in batch_of(count, side))

    def training_step(_: int) -> None:
        segmenter.zero_grad()
        backward(segmenter, pixels, labels, None, tuple(range(count)), 1, "bfloat16", lambda values: values)

    hour.tell("profile of a training step", **counted(training_step, hour, 1, "segmenter"))
    torch.cuda.empty_cache() if hour.device == "cuda" else None
