"""Training steps and predictions of a Mask2Former, and the loss of a tiny one against the CPU's."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_stages.measure import Hour, counted, precision_context, timed
from benchmarks.segmenter_settings import BACKBONES, NUM_CLASSES
from fmwsss.cluster.models.segmenters import SegmenterSpec, new_segmenter
from fmwsss.core.segmenter.inference import probabilities
from fmwsss.core.segmenter.optimizer import backward, clip_gradients, make_optimizer


def batch_of(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and labels of four blocks an image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    blocks = torch.randint(0, NUM_CLASSES, (count, 4, 4), generator=generator).to(torch.uint8)
    return images, blocks.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)


def segmenter_of(name: str, side: int) -> Any:
    backbone, options = BACKBONES[name]
    names = tuple(f"class {index}" for index in range(NUM_CLASSES))
    return new_segmenter(SegmenterSpec("mask2former", names, side, backbone, options))


def run(hour: Hour) -> None:
    """Swin-L at 512 pixels, batches of 4 and 16; the forward pass, the loss and the whole step."""
    side = 64 if hour.tiny else 512
    name = "tiny" if hour.tiny else "swin-l"
    segmenter = segmenter_of(name, side).to(hour.device)
    for precision in ("float32", "tf32", "bfloat16"):
        precision_context(precision, hour.device)
        for count in (2,) if hour.tiny else ((4,) if precision != "bfloat16" else (4, 16)):
            _training_rows(hour, segmenter, name, count, side, precision)
    precision_context("float32", hour.device)
    _prediction_row(hour, segmenter, name, side)
    _equal(hour)


def _training_rows(hour: Hour, segmenter: Any, name: str, count: int, side: int, precision: str) -> None:
    optimizer = make_optimizer(segmenter, "adamw", 1e-4, 0.05, 0.1)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    images, labels = (values.to(hour.device) for values in batch_of(count, side))
    segmenter.train()
    amp = "bfloat16" if precision == "bfloat16" else "float32"

    def step(number: int) -> None:
        optimizer.zero_grad()
        seeds = tuple(range(count * number, count * (number + 1)))
        backward(segmenter, images, labels, None, seeds, 1, amp, lambda values: values)
        clip_gradients(parameters, 0.01)
        optimizer.step()

    def forward(number: int) -> None:
        with torch.no_grad(), precision_context(precision, hour.device):
            segmenter.losses(images, labels, None, segmenter.measure(labels, None), tuple(range(count)))

    about = {"backbone": name, "precision": precision, "batch": count, "size": [side, side]}
    times = timed(step, hour, at_least_s=1.5)
    counts = counted(step, hour, repeats=1)
    hour.tell("training step", **about, **times, **counts, images_per_s=1000 * count / times["ms_median"])
    times = timed(forward, hour, at_least_s=0.5)
    hour.tell("forward and loss", **about, **times, **counted(forward, hour, repeats=1))


def _prediction_row(hour: Hour, segmenter: Any, name: str, side: int) -> None:
    segmenter.eval()
    pictures = [image.permute(1, 2, 0).numpy() for image in batch_of(2, side)[0]]
    times = timed(lambda number: probabilities(segmenter, pictures[number % 2], side), hour)
    hour.tell("prediction", backbone=name, precision="float32", batch=1, size=[side, side], **times)


def _equal(hour: Hour) -> None:
    """The loss of a tiny network, which must be the CPU's; in float64, for the points with the least certain scores are
    chosen, and a rounding of float32 is enough to choose others."""
    found = []
    for device in ("cpu", hour.device):
        segmenter = segmenter_of("tiny", 64).to(device, torch.float64).eval()
        images, labels = (values.to(device) for values in batch_of(2, 64))
        with torch.no_grad():
            losses = segmenter.losses(images, labels, None, segmenter.measure(labels, None), (1, 2))
        found.append(float(sum(losses.values())))
    error = abs(found[0] - found[1]) / abs(found[0])
    hour.tell("loss on the CPU", backbone="tiny", loss_error=error)
    if not error < 1e-6:
        raise AssertionError(f"the loss differs by {error:.1e} from the CPU's; 1e-6 is allowed")
