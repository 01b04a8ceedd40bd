"""The card, its driver, the versions, and what it reaches: bytes copied and products a second."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess

import torch

from benchmarks.gpu_stages.measure import Hour, precision_context, timed

MODULES = ("open_clip", "segment_anything", "pycocotools", "transformers", "torchvision", "ray", "triton", "beartype")


def run(hour: Hour) -> None:
    """Writes the row `env`, and a row for each ceiling."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        card = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card = None
    versions = {name: _version(name) for name in ("torch", "torchvision", "transformers", "numpy", "triton")}
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    free_gib = torch.cuda.mem_get_info()[0] / 2**30 if hour.device == "cuda" else None
    hour.tell("env", card=card, python=platform.python_version(), versions=versions, missing=missing, free_gib=free_gib)

    size = 1 << (12 if hour.tiny else 29)
    sources = [torch.randn(size, device=hour.device) for _ in range(2)]
    target = torch.empty_like(sources[0])
    times = timed(lambda number: target.copy_(sources[number % 2]), hour)
    hour.tell("ceiling", name="copy_gb_s", value=2 * 4 * size / times["ms_median"] / 1e6, **times)
    del sources, target

    side = 64 if hour.tiny else 8192
    for precision in ("bfloat16", "tf32", "float32"):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        factors = [torch.randn(side, side, device=hour.device, dtype=dtype) for _ in range(3)]
        precision_context(precision, hour.device)
        times = timed(lambda number, f=factors: f[number % 3] @ f[(number + 1) % 3], hour)
        value = 2 * side**3 / times["ms_median"] / 1e9
        hour.tell("ceiling", name=f"{precision}_tflops", value=value, **times)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
