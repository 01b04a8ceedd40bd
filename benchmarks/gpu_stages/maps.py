"""Class maps of a batch of photographs, and their seeds, against the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from benchmarks.gpu_stages.measure import Hour, counted, precision_context, timed
from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.class_maps.sources import build
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.resize import upsample
from fmwsss.core.toy.models import toy_clip

NUM_CLASSES = 20
# Per image: VOC has 1.5 classes an image.
PRESENT = ((1,), (2, 5), (3,), (4, 7, 9), (6,), (8,), (10, 11), (12,))
SOURCES: tuple[dict[str, Any], ...] = ({"kind": "gradcam"}, {"kind": "patch"})


def run(hour: Hour) -> None:
    """ViT-B/16 with random weights, 375 x 500, 20 classes, at one scale and at three."""
    precision_context("float32", hour.device)
    torch.manual_seed(0)
    model: Any = toy_clip() if hour.tiny else open_clip.create_model("ViT-B-16", pretrained=None)
    model = model.eval().requires_grad_(False)
    foreground, background = (
        torch.nn.functional.normalize(torch.randn(count, 64 if hour.tiny else 512), dim=-1)
        for count in (NUM_CLASSES, 25)
    )
    width, height = (64, 48) if hour.tiny else (500, 375)
    count = 2 if hour.tiny else 8
    images = [
        np.array(Image.fromarray(image).resize((width, height))) for image in (hour.photographs(count) * count)[:count]
    ]
    present = [list(own) for own in PRESENT[:count]]

    def maps(clip: FrozenClip, source: dict[str, Any], scales: tuple[float, ...]) -> Any:
        texts = foreground.to(clip.device), background.to(clip.device)
        return map_classes(clip, images, present, *texts, 0.4, 2, scales, source=build(source))

    on_cpu = FrozenClip(model, identity="random")
    expected = {source["kind"]: maps(on_cpu, source, (1.0,)) for source in SOURCES}
    clip = FrozenClip(model.to(hour.device), identity="random")
    for source in SOURCES:
        for scales in ((1.0,), (1.0, 1.5)):
            step = lambda _, source=source, scales=scales: maps(clip, source, scales)  # noqa: E731
            times, counts = timed(step, hour), counted(step, hour)
            hour.tell(
                "class maps", source=source["kind"], scales=scales, batch=count, size=[height, width], **times,
                **counts, images_per_s=1000 * count / times["ms_median"],
            )  # fmt: skip
        _compare(hour, source["kind"], maps(clip, source, (1.0,)), expected[source["kind"]], (height, width))


def _compare(hour: Hour, name: str, found: Any, expected: Any, size: tuple[int, int]) -> None:
    largest, same, total = 0.0, 0, 0
    for own, other in zip(found, expected, strict=True):
        largest = max(largest, float(np.abs(own.cam - other.cam).max()))
        labels = [_labels(maps.cam, size) for maps in (own, other)]
        same += int((labels[0] == labels[1]).sum())
        total += labels[0].size
    hour.tell("class maps on the CPU", source=name, max_abs=largest, labels_equal=same / total)
    if not (largest < 2e-3 and same / total > 0.999):
        raise AssertionError(f"maps of {name} differ by {largest:.1e}; {same / total:.5f} of the pixels agree")


def _labels(maps: Any, size: tuple[int, int]) -> Any:
    full = upsample(maps, *size)
    background = (1 - full.max(0, keepdims=True)) ** 0.4
    return np.concatenate([background, full]).argmax(0)
