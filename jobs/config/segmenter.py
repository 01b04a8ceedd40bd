"""Sections `segmenter` and `predict` of a run file: the second stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fmwsss.core.segmenter.crop_settings import CropSettings
from fmwsss.jobs.config.base import Count, Section, Share, setting
from fmwsss.jobs.config.datasets import LabelledData, UnlabelledData


class SegmenterSection(Section):
    """The second stage: a segmenter trained on the seeds (M7). Leave the section out and none is trained."""

    network: Literal["mask2former", "deeplabv3plus"] = "mask2former"
    """The network (M7)."""
    engine: Literal["ray", "detectron2"] | None = None
    """What trains it; null: detectron2 where it is installed, else Ray Train."""
    backbone: dict[str, Any] = {"model_type": "swin"}
    """Of a Mask2Former: configuration of a backbone in transformers, or `{model_type: clip}` for the run's CLIP."""
    options: dict[str, Any] = {}
    """Of a Mask2Former: settings of transformers' Mask2FormerConfig."""
    resnet: str = "resnet101"
    """Of a DeepLabV3+: name of the ResNet in torchvision; `resnet101_v1c` has mmsegmentation's stem (M7)."""
    weights: str | None = None
    """Weights to begin with, of the whole network or of its backbone: a path or URL."""
    weights_sha256: str | None = None
    """Of a DeepLabV3+: SHA-256 of `weights` in hexadecimal; weights from a URL must have it."""
    factory: str | None = None
    """`package.module:function` that returns a network of one's own."""
    rounds: Annotated[int, Field(ge=1, le=5)] = 1
    """Rounds of training; between two rounds the seeds are refined by the trained network."""

    iterations: Count = 80_000
    """Length in iterations; authors: 80,000 VOC, Mask2Former on COCO 100,000, DeepLabV3+ 160,000 (M7)."""
    batch_size: Count = 16
    """Crops of a batch, of all workers together (M7)."""
    micro_batches: Count = 1
    """Pieces in which each worker's share of a batch goes through the network; more take less memory."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Of the network; null: bfloat16 on a GPU, float32 on a CPU."""
    crop_px: Count = setting(CropSettings, "crop_px")
    short_side_px: Count = setting(CropSettings, "short_side_px")
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = setting(
        CropSettings, "scale_range"
    )
    category_cap: Share = setting(CropSettings, "category_cap")
    distort: bool = setting(CropSettings, "distort")
    flip: bool = setting(CropSettings, "flip")
    paste: Share = setting(CropSettings, "paste")

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer: AdamW for Mask2Former, SGD for DeepLabV3+ (M7)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate at the start; 1e-4 with AdamW, .01 with SGD (M7)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay, of none of the norms and embeddings (M7)."""
    backbone_multiplier: Annotated[float, Field(ge=0)] = 0.1
    """What the backbone's learning rate is multiplied by (M7)."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 0.01
    """Greatest norm of the gradient; null does not clip (M7)."""
    power: Annotated[float, Field(ge=0)] = 0.9
    """Exponent of the polynomial decay of the learning rate (M7)."""
    rate_floor: Share = 0.0
    """What the learning rate falls to, as a share of it; mmsegmentation 1e-4 / learning_rate (M7)."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    """Iterations in which the learning rate rises linearly."""
    confidence_weights: bool = False
    """Weigh each pixel's loss by the confidence of its seed."""

    preview_every: Count = 1000
    """Iterations between pictures of predictions in TensorBoard."""
    validation: Annotated[LabelledData | UnlabelledData, Field(discriminator="kind")] | None = None
    """Images to predict after the training and, where they have ground truth, to judge by."""
    validate_every: Count | None = None
    """Iterations between validations; needs ground truth. Only `keep: best` lets it decide anything."""
    keep: Literal["last", "best"] = "last"
    """Which weights are kept: the last, or the best of `validation`."""

    @model_validator(mode="after")
    def _best_of_what(self) -> SegmenterSection:
        if self.keep == "best" and not (self.validation and self.validate_every):
            raise ValueError("`keep: best` needs `validation` with truth, and `validate_every`")
        if self.validate_every and not self.validation:
            raise ValueError("`validate_every` needs `validation`: images with truth")
        if self.factory and self.weights:
            raise ValueError("a factory loads its own weights: leave out `weights`")
        if self.weights_sha256 and not (self.weights and self.network == "deeplabv3plus"):
            raise ValueError("`weights_sha256` is of the one file that `network: deeplabv3plus` takes as `weights`")
        if self.paste and self.batch_size < 2:
            raise ValueError("`paste` takes a class from another crop of the batch: `batch_size` must be 2 at least")
        return self


class PredictSection(Section):
    """What a trained segmenter says of images, and its refinement (M5.3)."""

    scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [1.0]
    """Scales of the image whose scores are averaged; authors: 1 for Mask2Former, .5 to 1.75 for DeepLabV3+ (M7)."""
    flip: bool = False
    """Average with the scores of the mirrored image (M7)."""
    merge_queries: Literal["sum", "max"] = "sum"
    """Of a Mask2Former: how queries that name one class are merged; authors: sum (M7)."""
    refine: Literal["sams", "crf"] | None = "sams"
    """How predictions are refined: by superpixels, by a dense CRF, or null for not at all (M5.3)."""
    alpha: Annotated[float, Field(gt=0)] = 3.0
    """Exponent of the background's probability in `refine: sams`; authors 3 (M5.3)."""
    cam_weight: Share = 0.0
    """Weight of CLIP's class maps beside the segmenter's probabilities in `refine: sams` (M5.3)."""
    uncovered: Literal["segmenter", "background"] = "segmenter"
    """Label of pixels in no superpixel in `refine: sams`: the segmenter's, or background as authors have it (M5.3)."""
    png: bool = True
    """Write each prediction as a palette PNG too, beside Parquet."""

    @model_validator(mode="after")
    def _check(self) -> PredictSection:
        if self.cam_weight and self.refine != "sams":
            raise ValueError("`cam_weight` needs `refine: sams`")
        return self
