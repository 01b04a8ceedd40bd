"""Superpixels of whole images, against `SamAutomaticMaskGenerator`.

Random weights are as fast as trained ones in the encoder, but their masks pass no threshold. So the whole ViT-H is
timed with its encoder computing beside a small trained one, whose features the decoder then gets: the decoder of every
SAM is the same network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import proposals
from benchmarks.gpu_stages.measure import Hour, counted, timed
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import detect, propose

SIZES = ((375, 500), (1500, 2000))


class Beside(nn.Module):
    """An image encoder that costs what a large one costs, and gives what a small one gives."""

    def __init__(self, large: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.large, self.small = large, small
        self.img_size = small.img_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Both; the large one's result is thrown away."""
        self.large(pixels)
        return self.small(pixels)


def load(hour: Hour) -> Any:
    """The SAM of the factory, or the toy one, on the device."""
    from fmwsss.core.toy.models import toy_sam

    if hour.sam:
        from fmwsss.cluster.models.factories import find_factory

        sam = find_factory(hour.sam)()
    else:
        sam = toy_sam()
    return sam.eval().requires_grad_(False).to(hour.device)


def vit_h(hour: Hour) -> nn.Module:
    """SAM's largest image encoder with random weights; in a tiny hour a ViT of two blocks."""
    from segment_anything.modeling import ImageEncoderViT

    dims: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)}
    if hour.tiny:
        dims = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}
    with torch.device(hour.device):
        return ImageEncoderViT(
            img_size=128 if hour.tiny else 1024, patch_size=16, out_chans=256, qkv_bias=True, use_rel_pos=True,
            window_size=14, mlp_ratio=4, **dims,
        ).eval().requires_grad_(False)  # fmt: skip


def settings_of(hour: Hour, **changes: Any) -> ProposalSettings:
    """The defaults on trained weights; for the toy SAM what it needs."""
    if hour.sam:
        return replace(ProposalSettings(), **changes)
    toy = ProposalSettings(points_per_side=8, predicted_iou_threshold=0.4, stability_threshold=0.5)
    changes.pop("points_per_side", None)
    return replace(toy, **changes)


def run(hour: Hour) -> None:
    """Whole images, ours and the original, with ViT-H's encoder beside; then a small SAM alone, larger images too."""
    sam, images = load(hour), hour.photographs(2)
    small = sam.image_encoder
    if not hour.tiny:
        sam.image_encoder = Beside(vit_h(hour), small)
    for crop_layers in (0,) if hour.tiny else (0, 1):
        settings = settings_of(hour, points_per_side=32, crop_layers=crop_layers)
        _against_original(hour, sam, images, settings, "ViT-H beside")
        for precision in ("tf32", "bfloat16"):
            own = replace(settings, precision="bfloat16" if precision == "bfloat16" else "float32")
            with tf32(precision == "tf32"):
                _image_rows(hour, sam, images, own, "ViT-H beside", precision)
    if hour.device == "cuda":
        own = replace(settings_of(hour, points_per_side=32), precision="bfloat16", compiled=True)
        _image_rows(hour, sam, images, own, "ViT-H beside, compiled", "bfloat16")
    sam.image_encoder = small
    for height, width in ((96, 128),) if hour.tiny else SIZES:
        resized = [np.array(Image.fromarray(image).resize((width, height))) for image in images]
        _image_rows(hour, sam, resized, settings_of(hour, points_per_side=32), "trained")


def _image_rows(
    hour: Hour, sam: Any, images: list[Any], settings: ProposalSettings, weights: str, precision: str = "float32"
) -> None:
    """Ours: the network's part, and the whole with what follows on the CPU."""
    about = {
        "weights": weights, "precision": precision, "size": list(images[0].shape[:2]),
        "crop_layers": settings.crop_layers, "points_per_side": settings.points_per_side,
    }  # fmt: skip
    network = timed(
        lambda number: detect(sam, images[number % len(images)], settings), hour, at_least=6, at_least_s=0.5
    )
    whole = timed(lambda number: propose(sam, images[number % len(images)], settings), hour, at_least=4, at_least_s=0)
    masks = [len(propose(sam, image, settings)) for image in images]
    counts = counted(lambda number: detect(sam, images[number % len(images)], settings), hour, repeats=2)
    hour.tell("detect", **about, **network, **counts, images_per_s=1000 / network["ms_median"])
    hour.tell("propose", **about, **whole, masks=masks, images_per_s=1000 / whole["ms_median"])


def _against_original(hour: Hour, sam: Any, images: list[Any], settings: ProposalSettings, weights: str) -> None:
    _image_rows(hour, sam, images, settings, weights)
    off = replace(settings, **proposals.CHANGES_OFF)
    found = proposals.measure(sam, images, off, batch_effect=True)
    keys = (
        "masks", "masks_equal", "pixels_different", "pixels_different_by_batch", "speedup", "postprocess_speedup",
        "network_share", "seconds",
    )  # fmt: skip
    hour.tell(
        "ours against SamAutomaticMaskGenerator", weights=weights, precision="float32",
        crop_layers=settings.crop_layers, size=list(images[0].shape[:2]), **{key: found[key] for key in keys},
    )  # fmt: skip


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products and convolutions of float32 may be TF32, for a while."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
