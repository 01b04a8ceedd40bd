"""Sections `vocabulary`, `clip`, `sam` and the mask generation of a run file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.jobs.config.base import Count, Section, Share, setting

Words = Annotated[str, StringConstraints(strip_whitespace=True)]
NO_CLASSES = {"background", "_background_", "bg", "ignore", "void", "unlabeled", "unlabelled"}


def _by_index(value: Any) -> Any:
    """Names in the order of their indices, where they are given as `{0: person, 1: car}`."""
    if not isinstance(value, dict):
        return value
    if sorted(value, key=str) != sorted(range(len(value)), key=str):
        raise ValueError("names with indices have all of 0, 1, 2, ... as keys; or give a list of names")
    return [value[index] for index in range(len(value))]


class VocabularySection(Section):
    """Classes of one's own."""

    classes: Annotated[list[Words], BeforeValidator(_by_index, json_schema_input_type=list[str] | dict[int, str])]
    """Class names in the order of their indices 1, 2, ..., as a list or as `{0: first, 1: second}`; index 0 is
    background already."""
    prompts: list[Words] | None = None
    """Words that stand for each class in CLIP's prompts, one string a class; null: the class names (M1)."""
    backgrounds: list[Words] | None = None
    """Words for what surrounds the classes; null: VOC's, less every word of a class or prompt (M1)."""

    @model_validator(mode="after")
    def _are_classes(self) -> VocabularySection:
        if wrong := [name for name in self.classes if name.lower() in NO_CLASSES]:
            raise ValueError(
                f"{wrong[0]!r} is no class: index 0 is background already, and 255 is what is ignored; leave it out"
            )
        return self


# A name or a section, told apart before anything is checked, so that one mistake is one line.
VocabularyChoice = Annotated[
    Annotated[str, Tag("str")] | Annotated[VocabularySection, Tag("VocabularySection")],
    Discriminator(lambda value: "VocabularySection" if isinstance(value, dict | VocabularySection) else "str"),
]


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
