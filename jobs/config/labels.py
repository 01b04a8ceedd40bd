"""Section `labels` of a run file: who says which classes an image shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fmwsss.core.vocabulary import HANDMADE_TEMPLATE
from fmwsss.jobs.config.base import Section, Share
from fmwsss.jobs.config.seeds import Template


class LabelsSection(Section):
    """Who says which classes an image shows (M8.2)."""

    source: Literal["dataset", "clip"] = "dataset"
    """`dataset`: an image without labels is left out. `clip`: images are tagged; `from: clip` is the same."""
    known: Literal["keep", "extend", "ignore"] = "keep"
    """Of `clip`, labels that the dataset has: kept as all that an image shows, kept and added to (an image may show
    more), or not read."""
    method: Literal["tagclip", "crops"] = "tagclip"
    """TagCLIP, or votes of crops (ours) (M8.2)."""
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] | Literal["imagenet"] = (HANDMADE_TEMPLATE,)
    """Hand-made prompts of the classes, as in `seeds`; TagCLIP has `imagenet`."""
    threshold: Share | None = None
    """The score that a class must exceed; null: Otsu's threshold of the scores of the whole dataset (ours)."""
    at_least_one: bool = True
    """An image whose scores are all lower shows the class of the highest (TagCLIP)."""
    max_side_px: Annotated[int, Field(ge=64)] | None = 640
    """CLIP sees no image with a longer side; null for no bound."""
    corrections: str | None = None
    """Table of what people say, `image_id,class,present`: 1 adds a class to an image, 0 takes it away."""

    @model_validator(mode="before")
    @classmethod
    def _by_its_short_name(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "from" in raw and "source" not in raw:
            return {**{key: value for key, value in raw.items() if key != "from"}, "source": raw["from"]}
        return raw

    @property
    def is_tagged(self) -> bool:
        """Whether CLIP has a say."""
        return self.source == "clip"

    @property
    def stage(self) -> str:
        """The stage whose column `classes` has the labels of the run."""
        return "tags/labels" if self.is_tagged else "images"

    @property
    def read(self) -> tuple[str, ...]:
        """What a stage that looks at labels reads beside the images."""
        return (self.stage,) if self.is_tagged else ()
