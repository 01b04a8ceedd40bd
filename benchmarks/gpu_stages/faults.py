"""What happens where memory runs out, and where a process's CUDA context breaks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import torch

from benchmarks.gpu_stages.measure import Hour
from benchmarks.gpu_stages.sam import load, settings_of
from fmwsss.cluster.execution.machine_faults import kind_of
from fmwsss.core.superpixels.sam import propose

_BROKEN = """
import torch
from fmwsss.cluster.execution.machine_faults import kind_of
table = torch.zeros(4, device="cuda")
for index in (100, 1):
    try:
        table[torch.tensor([index], device="cuda")].cpu()
        print("no error")
    except Exception as error:
        print(type(error).__name__, kind_of(error))
"""


def run(hour: Hour) -> None:
    """Out of memory halves the batch and leaves the masks; a broken context is the machine's, now and later."""
    sam, (image,) = load(hour), hour.photographs(1)
    settings = settings_of(hour, points_per_side=32)
    expected = propose(sam, image, settings)
    if hour.device != "cuda":
        hour.tell("out of memory", skipped="no card")
        return
    torch.cuda.empty_cache()
    # What is there now, and 2 GiB: far too little for 1,024 points at once.
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2 * 2**30) / total_bytes)
    try:
        found = propose(sam, image, replace(settings, points_per_batch=1024))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    same_rle = found.rle == expected.rle
    hour.tell("out of memory", points_per_batch=1024, masks=len(found), expected=len(expected), same_rle=same_rle)
    if len(found) != len(expected):
        raise AssertionError(f"{len(found)} masks after out of memory, {len(expected)} without")

    child = subprocess.run([sys.executable, "-c", _BROKEN], capture_output=True, text=True, timeout=60)
    said = child.stdout.split()
    hour.tell("broken context", first=said[:2], later=said[2:], returncode=child.returncode)
    if said[1::2] != ["machine", "machine"]:
        raise AssertionError(f"a broken context is told as {child.stdout!r} {child.stderr[-300:]!r}")
    assert kind_of(torch.OutOfMemoryError("CUDA out of memory")) == "memory"
