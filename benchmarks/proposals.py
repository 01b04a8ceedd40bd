"""Mask proposals: ours with the three changes off against `SamAutomaticMaskGenerator`, same weights, same photographs.

    python -m benchmarks.proposals --sam factories:mobile_sam --images FOLDER [--count 3] [--points 16] [--json FILE]

Both sides in one process, image after image. Their time is split at the network: the image encoder, the decoder
(prompt encoder and mask decoder), the run-length encoding, and all the rest, which is the post-processing.

On a CPU these are seconds of the processor, which other programs on the machine do not change.

`masks_equal`: the same number of masks in the same order, and no mask differs in more than one of 10,000 pixels of its
own; `pixels_different` counts them. Floating-point sums are grouped differently, and the original differs from itself
as much when its points_per_batch does: `--batch-effect` measures that.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import segment_anything.automatic_mask_generator as original
import torch
from PIL import Image
from pycocotools import mask as coco
from segment_anything.modeling import Sam

import fmwsss.core.superpixels.masks as superpixels
import fmwsss.core.superpixels.postprocess as proposals
import fmwsss.core.superpixels.sam as ours
from benchmarks.table import show, write_json
from fmwsss.cluster.models.loaders import load_sam
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam_mask_decoder import PointDecoder

Seconds = defaultdict[str, float]
PHASES = ("encode", "decode", "rle")
CHANGES_OFF = {"whole_bonus": 0.0, "whole_priority": 0.0, "occupation_threshold": None, "min_region_area_px": 0}


@contextmanager
def timed(owner: Any, name: str, phase: str, seconds: Seconds) -> Iterator[None]:
    """Adds the time of every call of `owner.name` to `seconds[phase]`."""
    inner = getattr(owner, name)

    def outer(*arguments: Any, **options: Any) -> Any:
        started_s = now_s()
        result = inner(*arguments, **options)
        seconds[phase] += now_s() - started_s
        return result

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner)


def now_s() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def run_original(
    sam: Sam, image: np.ndarray, settings: ProposalSettings, batch: int, seconds: Seconds
) -> list[dict[str, Any]]:
    generator = original.SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points_per_side,
        points_per_batch=batch,
        pred_iou_thresh=settings.predicted_iou_threshold,
        stability_score_thresh=settings.stability_threshold,
        crop_n_layers=settings.crop_layers,
        crop_n_points_downscale_factor=settings.crop_downscale,
        output_mode="coco_rle",
    )
    with (
        timed(sam.image_encoder, "forward", "encode", seconds),
        timed(sam.prompt_encoder, "forward", "decode", seconds),
        timed(sam.mask_decoder, "forward", "decode", seconds),
        timed(original, "mask_to_rle_pytorch", "rle", seconds),
        timed(original, "coco_encode_rle", "rle", seconds),
        timed(generator, "generate", "whole", seconds),
    ):
        return generator.generate(image)


def run_ours(sam: Sam, image: np.ndarray, settings: ProposalSettings, seconds: Seconds) -> Any:
    with (
        timed(sam.image_encoder, "forward", "encode", seconds),
        timed(PointDecoder, "__init__", "decode", seconds),
        timed(PointDecoder, "__call__", "decode", seconds),
        timed(proposals, "_runs", "rle", seconds),
        timed(superpixels, "runs_to_coco", "rle", seconds),
        timed(ours, "propose", "whole", seconds),
    ):
        return ours.propose(sam, image, settings)


def compare(masks: list[np.ndarray], others: list[np.ndarray]) -> tuple[bool, int]:
    """Whether two lists of masks are equal as said above, and the pixels that differ."""
    if len(masks) != len(others):
        return False, sum(int(mask.sum()) for mask in (*masks, *others))
    differing = [int((mask != other).sum()) for mask, other in zip(masks, others, strict=True)]
    equal = all(count <= max(1, mask.sum() // 10_000) for count, mask in zip(differing, masks, strict=True))
    return equal, sum(differing)


def measure(sam: Sam, images: list[np.ndarray], settings: ProposalSettings, batch_effect: bool) -> dict[str, Any]:
    theirs_s, ours_s, ignored_s = (defaultdict(float) for _ in range(3))
    counts = {"masks": 0, "pixels_different": 0, "pixels_different_by_batch": 0}
    equal = True
    # A first call of each, unmeasured: libraries choose their kernels then.
    run_original(sam, images[0][:64, :64], ProposalSettings(points_per_side=2), 64, ignored_s)
    run_ours(sam, images[0][:64, :64], ProposalSettings(points_per_side=2), ignored_s)
    for image in images:
        records = run_original(sam, image, settings, 64, theirs_s)
        theirs = [coco.decode(record["segmentation"]).astype(bool) for record in records]
        found = run_ours(sam, image, settings, ours_s)
        same, pixels = compare(theirs, list(found.masks()))
        equal &= same
        counts["masks"] += len(found)
        counts["pixels_different"] += pixels
        if batch_effect:
            again = run_original(sam, image, settings, 48, ignored_s)
            masks = [coco.decode(record["segmentation"]).astype(bool) for record in again]
            counts["pixels_different_by_batch"] += compare(theirs, masks)[1]
    if not batch_effect:
        counts.pop("pixels_different_by_batch")
    sides = {"ours": per_image(ours_s, len(images)), "original": per_image(theirs_s, len(images))}
    after_network = {side: parts["postprocess"] + parts["rle"] for side, parts in sides.items()}
    network = sides["ours"]["encode"] + sides["ours"]["decode"]
    return {
        "device": str(sam.device),
        "images": len(images),
        "points_per_side": settings.points_per_side,
        "crop_layers": settings.crop_layers,
        "speedup": sides["original"]["whole"] / sides["ours"]["whole"],
        "postprocess_speedup": after_network["original"] / after_network["ours"],
        "masks_equal": equal,
        **counts,
        "network_share": network / sides["ours"]["whole"],
        "seconds": sides,
    }


def per_image(seconds: Seconds, num_images: int) -> dict[str, float]:
    parts = {phase: seconds[phase] / num_images for phase in PHASES}
    whole = seconds["whole"] / num_images
    return {**parts, "postprocess": whole - sum(parts.values()), "whole": whole}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", required=True, help="factory (package.module:function), or a type such as vit_b")
    parser.add_argument("--weights", help="checkpoint of a type")
    parser.add_argument("--images", required=True, help="a folder of photographs; the first ones by name are taken")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--crop-layers", type=int, default=0)
    parser.add_argument("--predicted-iou", type=float, default=0.86)
    parser.add_argument("--stability", type=float, default=0.92)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch-effect", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    is_factory = ":" in arguments.sam
    spec = ModelSpec(factory=arguments.sam) if is_factory else ModelSpec(arguments.sam, arguments.weights)
    paths = sorted(Path(arguments.images).glob("*.jpg"))[: arguments.count]
    photographs = [np.array(Image.open(path).convert("RGB")) for path in paths]
    chosen = ProposalSettings(
        points_per_side=arguments.points,
        crop_layers=arguments.crop_layers,
        predicted_iou_threshold=arguments.predicted_iou,
        stability_threshold=arguments.stability,
        precision=arguments.precision,
        **CHANGES_OFF,
    )
    result = measure(load_sam(spec), photographs, chosen, arguments.batch_effect)
    show([{"side": side, **parts} for side, parts in result["seconds"].items()], "seconds per photograph")
    keys = ("masks", "masks_equal", "pixels_different", "speedup", "postprocess_speedup", "network_share")
    show([{key: result[key] for key in keys}], "ours against the original")
    write_json(arguments.json, result)
