"""Training steps and predictions of a Mask2Former: images per second and memory, plain loop and detectron2's trainer.

    python -m benchmarks.segmenter_step --backbone swin-l --crop 512 --batch 16

Both engines run the same steps on the same crops, one after the other in this process; detectron2 is left out where it
is not installed. Weights are random: time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.segmenter_settings import BACKBONES, NUM_CLASSES
from benchmarks.table import show, write_json
from fmwsss.cluster.models.device import pick_device
from fmwsss.cluster.models.segmenters import SegmenterSpec, new_segmenter
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.segmenter.crop_settings import CropSettings
from fmwsss.core.segmenter.inference import probabilities
from fmwsss.jobs.config.segmenter import SegmenterSection
from fmwsss.jobs.segmenter.crops import CropBatch, CropSource
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.segmenter.train_loop import train_segmenter

WARM_UP = 2


class RandomCrops(CropSource):
    """Crops of noise: what is measured is the step, not the reading."""

    def batches(self, first: int, last: int, rank: int, num_workers: int, num_tasks: int = 1) -> Any:
        """The same batch again and again."""
        generator, side = torch.Generator().manual_seed(0), self.settings.crop_px
        shape = (self.batch_size, 3, side, side)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        blocks = torch.randint(0, NUM_CLASSES, (self.batch_size, 2, 2), generator=generator).to(torch.uint8)
        labels = blocks.repeat_interleave(side // 2, 1).repeat_interleave(side // 2, 2)
        ids = tuple(f"image-{index}" for index in range(self.batch_size))
        for _ in range(first, last):
            yield CropBatch(images, labels, None, ids, tuple(range(self.batch_size)))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--backbone", choices=BACKBONES, default="tiny")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help=f"measured after {WARM_UP} more")
    parser.add_argument("--micro-batches", type=int, default=1, help="plain loop only")
    parser.add_argument("--json")
    options = parser.parse_args()
    backbone, network_options = BACKBONES[options.backbone]
    names = tuple(f"class {index}" for index in range(NUM_CLASSES))
    spec = SegmenterSpec("mask2former", names, options.crop, backbone, network_options)
    precision = "bfloat16" if pick_device() == "cuda" else "float32"

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("ray", "detectron2"):
            if engine == "detectron2" and not importlib.util.find_spec("detectron2"):
                continue
            section = SegmenterSection(
                iterations=WARM_UP + options.steps, batch_size=options.batch, crop_px=options.crop, preview_every=10**9,
                micro_batches=options.micro_batches if engine == "ray" else 1,
            )  # fmt: skip
            settings = CropSettings(options.crop, options.crop)
            run = Run(Folder(str(Path(folder) / engine)))
            source = RandomCrops(run, (), (), ("seeds/fine", "seed"), False, options.batch, settings, 0)
            job = TrainJob(
                run=run, stage="segmenter", spec=spec, source=source, section=section,
                num_iterations=section.iterations, num_feeders=1, random_seed=0,
                num_threads=torch.get_num_threads(), checkpoint_every_s=1e9, validation=None, precision=precision,
            )  # fmt: skip
            rows.append({"what": f"training step, {engine}", **measure_training(engine, job)})
    segmenter = new_segmenter(spec).eval().to(pick_device())
    image = np.random.default_rng(0).integers(0, 256, (options.crop, options.crop, 3)).astype(np.uint8)
    seconds, memory = measured(lambda: [probabilities(segmenter, image, options.crop) for _ in range(options.steps)])
    rows.append({"what": "prediction, one by one", "images_per_s": options.steps / seconds, "peak_gib": memory})
    show(rows, f"Mask2Former {options.backbone}, {options.crop} px, batch {options.batch}, {precision}")
    write_json(options.json, {"backbone": options.backbone, "crop_px": options.crop, "rows": rows})


def measure_training(engine: str, job: TrainJob) -> dict[str, float]:
    """Images per second of the steps after the first few, and the peak of memory."""
    marks: list[float] = []

    def tell(done: int, note: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    board: Any = SimpleNamespace(set=SimpleNamespace(remote=tell))
    if engine == "ray":
        _, memory = measured(lambda: train_segmenter(job, board, rank=0, num_workers=1))
    else:
        from fmwsss.jobs.segmenter import detectron2_engine

        _, memory = measured(lambda: detectron2_engine.train_segmenter(job, board))
    # The first mark is that of the start, the others of one step each.
    seconds = marks[-1] - marks[WARM_UP]
    steps = len(marks) - 1 - WARM_UP
    return {"images_per_s": steps * job.source.batch_size / seconds, "peak_gib": memory}


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the peak of memory in GiB: of the GPU, or of this process until now."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin_s = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.perf_counter() - begin_s, peak_bytes / 2**30


if __name__ == "__main__":
    main()
