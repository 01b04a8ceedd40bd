"""What a stage of an earlier release was begun with, in the words of this one: options that it did not have are at
their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from fmwsss.jobs.config.base import Section
from fmwsss.jobs.config.datasets import DATASETS, ImageLimits
from fmwsss.jobs.config.models import ModelSection, ProposeSection
from fmwsss.jobs.config.prompts import ClassificationPrompts, SegmentationPrompts
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.config.segmenter import SegmenterSection

METHOD_VERSION = "method_version"  # of the code of a stage (`Stage.method_version`)
FIRST_VERSION = 1  # of every stage when releases began to number them

_SECTIONS: dict[str, type[Section]] = {
    "clip": ModelSection,
    "sam": ModelSection,
    "propose": ProposeSection,
    "seeds": SeedSection,
    "limits": ImageLimits,
    "segmenter": SegmenterSection,
}


def renewed_inputs(stage: str, old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a stage as this release would have written them.

    Args:
        stage: its name.
        old: as they were written; JSON.
        new: as they are now; which options there are.
    """
    if METHOD_VERSION in new:
        old = {METHOD_VERSION: FIRST_VERSION, **old}
    sections = dict(_SECTIONS)
    sections["learn"] = ClassificationPrompts if stage.endswith("classification") else SegmentationPrompts
    if isinstance(old.get("dataset"), dict):
        sections["dataset"] = DATASETS.get(old["dataset"].get("kind"), Section)
    if stage == "images" or stage.endswith("/images"):
        # What was written in the run file; today the content of the dataset is looked at instead.
        return {key: value for key, value in old.items() if key in new}
    renewed = dict(old)
    for key, section in sections.items():
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            renewed[key] = _with_defaults(_renamed(old[key]), new[key], section)
    return renewed


def _renamed(section: dict[str, Any]) -> dict[str, Any]:
    """`cam_loss_weight` stood beside a loss on the logits whose weight was always 1."""
    if "cam_loss_weight" not in section:
        return section
    weights = {"classification_weight": 1.0, "cam_weight": section["cam_loss_weight"]}
    return {key: value for key, value in section.items() if key != "cam_loss_weight"} | weights


def _with_defaults(old: dict[str, Any], new: Mapping[str, Any], section: type[Section]) -> dict[str, Any]:
    fields = section.model_fields
    missing = {key: fields[key] for key in new if key not in old and key in fields and not fields[key].is_required()}
    defaults = {key: field.get_default(call_default_factory=True) for key, field in missing.items()}
    return old | {key: TypeAdapter(Any).dump_python(value, mode="json") for key, value in defaults.items()}
