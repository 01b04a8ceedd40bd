"""Sections `vocabulary`, `clip`, `sam` and the mask generation of a run file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.jobs.config.base import Count, Section, Share, setting


class VocabularySection(Section):
    """Classes of one's own."""

    classes: list[str]
    """Class names in the order of their indices 1, 2, ...; index 0 is background already."""
    prompts: list[str] | None = None
    """Words that stand for each class in CLIP's prompts, one string a class; null: the class names (M1)."""
    backgrounds: list[str] | None = None
    """Words for what surrounds the classes; null: VOC's, less every word of a class or prompt (M1)."""


class ModelSection(Section):
    """Either `model` (with `weights` unless it is the toy one) or `factory`."""

    model: str | None = None
    """Name of the network in open_clip (CLIP) or in segment-anything's registry (SAM); or `toy`."""
    weights: str | None = None
    """Name of pretrained weights in open_clip, or a checkpoint: a path, an s3:// or an https:// URL."""
    sha256: str | None = None
    """SHA-256 of the checkpoint in hexadecimal; weights from a URL must have it."""
    factory: str | None = None
    """`package.module:function` that returns the network, in place of `model`."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSection:
        if bool(self.model) == bool(self.factory):
            raise ValueError("give either `model` or `factory`")
        if self.factory and (self.weights or self.sha256):
            raise ValueError("a factory loads its own weights: leave out `weights` and `sha256`")
        if self.model == "toy" and (self.weights or self.sha256):
            raise ValueError("the toy model has its own weights: leave out `weights` and `sha256`")
        return self

    def spec(self) -> ModelSpec:
        """The same, as the cluster's rooms take it."""
        return ModelSpec(self.model, self.weights, self.sha256, self.factory)


class ProposeSection(Section):
    """SAM's automatic masks with the three changes of the paper (M5.1)."""

    points_per_side: Count = setting(ProposalSettings, "points_per_side")
    points_per_batch: Count | None = setting(ProposalSettings, "points_per_batch")
    precision: Literal["float32", "bfloat16", "float16"] = setting(ProposalSettings, "precision")
    compiled: bool = setting(ProposalSettings, "compiled")
    predicted_iou_threshold: Share = setting(ProposalSettings, "predicted_iou_threshold")
    stability_threshold: Share = setting(ProposalSettings, "stability_threshold")
    stability_offset: Annotated[float, Field(gt=0)] = setting(ProposalSettings, "stability_offset")
    box_nms_threshold: Share = setting(ProposalSettings, "box_nms_threshold")
    crop_layers: Annotated[int, Field(ge=0, le=3)] = setting(ProposalSettings, "crop_layers")
    crop_downscale: Count = setting(ProposalSettings, "crop_downscale")
    min_region_area_px: Annotated[int, Field(ge=0)] = setting(ProposalSettings, "min_region_area_px")
    whole_bonus: float = setting(ProposalSettings, "whole_bonus")
    whole_priority: float = setting(ProposalSettings, "whole_priority")
    compat: bool = setting(ProposalSettings, "compat")
    occupation_threshold: Share | None = setting(ProposalSettings, "occupation_threshold")

    @model_validator(mode="after")
    def _possible(self) -> ProposeSection:
        ProposalSettings(**self.model_dump())  # what only all numbers together can say
        return self
