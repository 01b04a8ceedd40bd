"""What every stage of the GPU hour shares: its settings, times by events of the card, counts by the profiler."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

WARM_UP = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Hour:
    """Settings of a stage.

    Attributes:
        device: `cuda`, or `cpu` to try the program.
        tiny: sizes and repeats that take seconds.
        sam: factory of a SAM with trained weights (`package.module:function`); None: the toy SAM.
        images: folder of photographs; None: toy scenes.
        rows: file that every row is appended to as soon as it is there.
        traces: folder for what the profiler wrote.
        ceilings: what the card reaches, by name (`copy_gb_s`, `float32_tflops` ...), where it was measured before.
    """

    device: str
    tiny: bool
    sam: str | None
    images: Path | None
    rows: Path
    traces: Path
    ceilings: Mapping[str, float] = field(default_factory=dict)

    def tell(self, what: str, **values: Any) -> None:
        """Writes one row."""
        line = json.dumps({"what": what, **values}, default=float)
        print(line, flush=True)
        with self.rows.open("a") as file:
            file.write(line + "\n")

    def photographs(self, count: int) -> list[Any]:
        """RGB images, the first of the folder by name, or toy scenes."""
        import numpy as np

        from fmwsss.core.toy.world import draw_scene

        paths = sorted(self.images.glob("*.jpg"))[:count] if self.images else []
        if paths:
            return [np.array(Image.open(path).convert("RGB")) for path in paths]
        return [draw_scene(7000 + number).image for number in range(count)]


def synchronize(device: str) -> None:
    """Waits for the card, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[int], Any], hour: Hour, at_least: int = 10, at_least_s: float = 2.0) -> Row:
    """Milliseconds of a step, by events of the card, and the peak of its memory.

    Args:
        step: called with the number of the repeat, so that it can take other inputs each time.
        hour: whose device is meant; `tiny` measures twice, after one warm-up.
        at_least: repeats.
        at_least_s: seconds; whichever of the two takes longer, but never more than 200 repeats.
    """
    is_cuda = hour.device == "cuda"
    for number in range(1 if hour.tiny else WARM_UP):
        step(number)
    synchronize(hour.device)
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    times, began_s = [], time.perf_counter()
    limit, least_s = (2, 0.0) if hour.tiny else (at_least, at_least_s)
    while (len(times) < limit or time.perf_counter() - began_s < least_s) and len(times) < 200:
        times.append(_one(step, len(times), is_cuda))
    peak = torch.cuda.max_memory_allocated() / 2**30 if is_cuda else None
    return {
        "ms_median": statistics.median(times),
        "ms_p90": sorted(times)[math.ceil(0.9 * len(times)) - 1],
        "repeats": len(times),
        "peak_gib": peak,
    }


def _one(step: Callable[[int], Any], number: int, is_cuda: bool) -> float:
    if not is_cuda:
        began_s = time.perf_counter()
        step(number)
        return 1000 * (time.perf_counter() - began_s)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step(number)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def counted(step: Callable[[int], Any], hour: Hour, repeats: int = 3, trace: str | None = None) -> Row:
    """Launches, waits and the share of time in which the card computes, a step; by the profiler, without a card none.

    Args:
        step: as in `timed`; called once before.
        hour: see there.
        repeats: of the step inside the profile.
        trace: name of a file for the timeline, which is written compressed; None: it is not kept.
    """
    if hour.device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    step(0)
    synchronize(hour.device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        began_s = time.perf_counter()
        for number in range(repeats):
            step(number)
        synchronize(hour.device)
        wall_us = 1e6 * (time.perf_counter() - began_s)
    on_card, kernels = [], {}
    launches = waits = 0
    for event in profiled.events() or []:
        if event.device_type.name == "CUDA":
            on_card.append((event.time_range.start, event.time_range.end))
            kernels[event.name] = kernels.get(event.name, 0.0) + event.time_range.elapsed_us()
        elif "LaunchKernel" in event.name:
            launches += 1
        elif event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"):
            waits += 1
    if trace:
        profiled.export_chrome_trace(str(hour.traces / f"{trace}.json.gz"))
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:15]
    return {
        "launches": round(launches / repeats),
        "waits": round((waits - 1) / repeats),
        "busy_share": covered(on_card) / wall_us,
        "kernels": [{"name": name[:120], "ms": us / 1000 / repeats} for name, us in longest] if trace else None,
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def precision_context(precision: str, device: str) -> torch.autocast:
    """Autocast for bfloat16; sets whether float32 products may be TF32."""
    is_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = is_tf32
    torch.backends.cudnn.allow_tf32 = is_tf32
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


def roofline(hour: Hour, tflop: float, precision: str, ms: float) -> Row:
    """Milliseconds that the arithmetic alone takes at what the card reaches, and the share of the time that it is."""
    ceiling = hour.ceilings.get(f"{precision}_tflops")
    if not ceiling:
        return {}
    floor_ms = 1000 * tflop / ceiling
    return {"roofline_ms": floor_ms, "roofline_share": floor_ms / ms}
