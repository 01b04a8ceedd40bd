"""Sections `segmenter` and `predict` of a run file: the second stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fmwsss.jobs.config.base import Count, Section, Share
from fmwsss.jobs.config.datasets import FolderData, ToyData, UnlabelledData, VocData


class SegmenterSection(Section):
    """The second stage: a segmenter trained on the seeds (method M7). Leave the section out and none is trained."""

    network: Literal["mask2former", "deeplabv3plus"] = "mask2former"
    engine: Literal["ray", "detectron2"] | None = None  # null: detectron2 where it is installed, else ray
    backbone: dict[str, Any] = {"model_type": "swin"}  # of a Mask2Former: a backbone's configuration in transformers
    options: dict[str, Any] = {}  # settings of transformers' Mask2FormerConfig
    resnet: str = "resnet101"  # of a DeepLabV3+
    weights: str | None = None  # to begin with: of the whole network, or of its backbone
    weights_sha256: str | None = None  # of a DeepLabV3+'s, which from a URL must have it
    factory: str | None = None
    rounds: Annotated[int, Field(ge=1, le=5)] = 1  # of training and, between them, making better seeds by refinement

    iterations: Count = 80_000
    batch_size: Count = 16
    micro_batches: Count = 1  # in how many pieces each worker's share goes through the network
    precision: Literal["float32", "bfloat16"] | None = None  # null: bfloat16 on a GPU, float32 on a CPU
    crop_px: Count = 512
    short_side_px: Count = 512
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    category_cap: Share = 0.75
    distort: bool = True
    flip: bool = True
    paste: Share = 0.0  # of the crops, that get a class of another one laid over them

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    backbone_multiplier: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = 0.01
    power: Annotated[float, Field(ge=0)] = 0.9
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    confidence_weights: bool = False  # weigh each pixel's loss by its seed's confidence

    preview_every: Count = 1000  # iterations between pictures of predictions in TensorBoard
    validation: Annotated[ToyData | VocData | FolderData | UnlabelledData, Field(discriminator="kind")] | None = None
    validate_every: Count | None = None  # iterations; needs truth. Only `keep: best` lets it decide anything
    keep: Literal["last", "best"] = "last"

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
    """What a trained segmenter says of images, and its refinement (method M5.3)."""

    scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [1.0]
    flip: bool = False
    merge_queries: Literal["sum", "max"] = "sum"  # of a Mask2Former, that name one class; authors: sum
    refine: Literal["sams", "crf"] | None = "sams"
    alpha: Annotated[float, Field(gt=0)] = 3.0
    cam_weight: Share = 0.0  # of CLIP's class maps, beside the segmenter's probabilities, in `refine: sams`
    png: bool = True

    @model_validator(mode="after")
    def _check(self) -> PredictSection:
        if self.cam_weight and self.refine != "sams":
            raise ValueError("`cam_weight` needs `refine: sams`")
        return self
