"""Sections `vocabulary`, `clip`, `sam` and the mask generation of a run file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.jobs.config.base import Count, Section, Share


class VocabularySection(Section):
    """Classes of one's own."""

    classes: list[str]
    prompts: list[str] | None = None
    backgrounds: list[str] | None = None  # null: those of VOC that are no word of a class or prompt


class ModelSection(Section):
    """Either `model` (with `weights` unless it is the toy one) or `factory`."""

    model: str | None = None
    weights: str | None = None
    sha256: str | None = None
    factory: str | None = None

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
    """SAM's automatic masks with the three changes (method M5.1); the values are those of `ProposalSettings`."""

    points_per_side: Count = 32
    points_per_batch: Count | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compiled: bool = False  # torch.compile of the image encoder, kept beside fetched weights
    predicted_iou_threshold: Share = 0.86
    stability_threshold: Share = 0.92
    stability_offset: Annotated[float, Field(gt=0)] = 1.0
    box_nms_threshold: Share = 0.7
    crop_layers: Annotated[int, Field(ge=0, le=3)] = 0
    crop_downscale: Count = 2
    min_region_area_px: Annotated[int, Field(ge=0)] = 100
    whole_bonus: float = 0.1
    whole_priority: float = 1.0
    compat: bool = False
    occupation_threshold: Share | None = 0.3
