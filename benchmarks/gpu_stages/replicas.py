"""One, two and three processes that each hold a SAM on the same card: images a second, and memory."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import torch

from benchmarks.gpu_stages.measure import Hour
from benchmarks.gpu_stages.sam import load, settings_of

IMAGES = 8


def _count(hour: Hour) -> int:
    return 1 if hour.tiny else IMAGES


def run(hour: Hour) -> None:
    """Each process detects the same photographs; the time is from the moment that all are warm."""
    for num_replicas in (1, 2) if hour.tiny else (1, 2, 3):
        context = multiprocessing.get_context("spawn")
        barrier, answers = context.Barrier(num_replicas + 1), context.Queue()
        processes = [context.Process(target=_replica, args=(hour, barrier, answers)) for _ in range(num_replicas)]
        for process in processes:
            process.start()
        barrier.wait(120)
        began_s = time.perf_counter()
        peaks = [answers.get(timeout=120) for _ in processes]
        seconds = time.perf_counter() - began_s
        for process in processes:
            process.join(30)
        hour.tell(
            "replicas on one card", replicas=num_replicas, images_per_s=num_replicas * _count(hour) / seconds,
            peak_gib=sum(peaks),
        )  # fmt: skip


def _replica(hour: Hour, barrier: Any, answers: Any) -> None:
    from fmwsss.core.superpixels.sam import propose

    torch.set_num_threads(2)
    sam, images = load(hour), hour.photographs(_count(hour))
    settings = settings_of(hour, points_per_side=32)
    propose(sam, images[0], settings)
    barrier.wait(120)
    for number in range(_count(hour)):
        propose(sam, images[number % len(images)], settings)
    answers.put(torch.cuda.max_memory_reserved() / 2**30 if hour.device == "cuda" else 0.0)
