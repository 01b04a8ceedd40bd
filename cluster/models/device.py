"""Device, precision and threads of a worker."""

from __future__ import annotations

import sys


def pick_device() -> str:
    """`cuda` where this process was given a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() and not _is_worker_without_gpu() else "cpu"


def _is_worker_without_gpu() -> bool:
    """Whether Ray gave this worker none: it does not hide the machine's GPUs from it."""
    if "ray" not in sys.modules:  # a worker has it; `fmwsss try` starts without
        return False
    import ray

    from fmwsss.cluster.execution.ray_compat import is_worker

    return is_worker() and not ray.get_runtime_context().get_accelerator_ids().get("GPU")


def uses_bfloat16(precision: str | None, device_type: str) -> bool:
    """Whether the towers compute in bfloat16: as told, or on a GPU.

    Args:
        precision: `bfloat16`, `float32`, or None for what suits the device.
        device_type: `cpu` or `cuda`.
    """
    return precision == "bfloat16" or (precision is None and device_type == "cuda")


def use_threads(num_threads: int) -> None:
    """Gives torch the threads of this actor's share of the machine; Ray sets one for every worker."""
    import torch

    torch.set_num_threads(num_threads)
