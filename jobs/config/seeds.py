"""Section `seeds` of a run file: from class maps and superpixels to seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fmwsss.core.vocabulary import HANDMADE_TEMPLATE
from fmwsss.jobs.config.base import Count, Section, Share
from fmwsss.jobs.config.class_maps import GradCamSource, SourceSection, needs_clip


def _with_a_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("a template has one {} where the name goes")
    return template


Template = Annotated[str, AfterValidator(_with_a_place)]


class SeedSection(Section):
    """From maps and superpixels to a seed (M2.2, M5.2 and M5.4)."""

    source: SourceSection = GradCamSource()
    """What makes class maps: a kind by its name, or a section with `kind` and that kind's own keys (M2, M11)."""
    prompts: Literal["learned", "handmade"] = "learned"
    """Texts of the classes: the prompts that were learned, or names in `templates` (M1)."""
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] | Literal["imagenet"] = (HANDMADE_TEMPLATE,)
    """Hand-made prompts with one {} for the name, whose embeddings are averaged; `imagenet` are CLIP's 80 (M11)."""

    method: Literal["sams", "crf", "voting", "threshold"] = "sams"
    """Superpixels classified by the maps, or compared methods: dense CRF, SEPL voting, the maps alone (M5.4)."""
    ignore_below: Share = 0.0
    """Pixels of lower confidence become 255; 0 for none, CLIP-ES has .95 with its CRF (M5.4)."""
    keep_labelled: bool = False
    """Give a labelled class without a pixel its best superpixel; needs `method: sams` (M5.2)."""
    uncovered: Literal["background", "map"] = "background"
    """Pixels in no superpixel: background (paper), or what the map says there (ours); of `method: sams` (M5.2)."""
    foreground: Literal["patches", "tokens", "both"] | None = None
    """Learn on the whole dataset what foreground looks like (ours): from CLIP's embeddings of single patches, the
    tokens before its last block, or both; null: the maps of the image decide alone (M5.5)."""
    maps: Literal["cam", "cam+caa"] = "cam+caa"
    """Which maps classify the superpixels, plain or refined by affinity; both are stored and judged (M2.2)."""
    alpha: Annotated[float, Field(gt=0)] = 0.6
    """Exponent of the background's score: a greater one makes less background; paper .6 (M5.2)."""
    box_threshold: Share | None = 0.4
    """Affinity spreads inside boxes around what exceeds this share of a map's maximum; null for no boxes; CLIP-ES .4
    for VOC, .7 for COCO (M2.2)."""
    box_on: Literal["map", "result"] = "map"
    """What the boxes cut: the map that affinity spreads (both programs), or what comes of it (paper, eq. 4; M2.2)."""
    affinity_map: Literal["normalised", "raw"] = "normalised"
    """The map that affinity spreads; authors raw but for the coarse seeds of VOC (M2.2)."""
    num_sinkhorn: Annotated[int, Field(ge=0)] = 1
    """Rounds of Sinkhorn normalisation of the affinity; authors 1, CLIP-ES 3 (M2.2)."""
    num_attention_blocks: Count = 8
    """Last blocks of CLIP whose attention makes the affinity; all, where a CLIP has fewer; CLIP-ES 8 of 12 (M2.2)."""
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1)] = (1.0,)
    """Scales of the image whose maps are averaged; the papers have one (M2)."""
    flip: bool = False
    """Average in the maps of the mirrored image."""
    max_side_px: Annotated[int, Field(ge=64)] | None = 640
    """CLIP sees no image with a longer side; a larger one is made smaller for it, and seeds have its own size. Memory
    grows with the fourth power; null for no bound."""

    @property
    def has_affinity(self) -> bool:
        """Whether there are maps after the affinity; of other sources than the papers' only where they are used."""
        return isinstance(self.source, GradCamSource) or (self.maps == "cam+caa" and needs_clip(self.source))

    @property
    def needs_prompts(self) -> bool:
        """Whether learned prompts are read."""
        return self.prompts == "learned" and needs_clip(self.source)

    @model_validator(mode="after")
    def _given_maps_have_no_attention(self) -> SeedSection:
        if self.maps == "cam+caa" and not needs_clip(self.source):
            raise ValueError("`maps: cam+caa` needs CLIP's attention, and the source is given maps: write `maps: cam`")
        return self

    @model_validator(mode="after")
    def _foreground_is_of_superpixels_and_clip(self) -> SeedSection:
        if self.foreground and self.method != "sams":
            raise ValueError("`foreground` needs `method: sams`")
        if self.foreground and not needs_clip(self.source):
            raise ValueError("`foreground` needs CLIP, and the source is given maps")
        return self

    @model_validator(mode="after")
    def _only_superpixels_can_be_given_away(self) -> SeedSection:
        if self.keep_labelled and self.method != "sams":
            raise ValueError("`keep_labelled` needs `method: sams`")
        return self


class SeedStages(Section):
    """Coarse seeds from the classification prompts, fine seeds from the segmentation prompts."""

    coarse: SeedSection = SeedSection()
    """Seeds of the classification prompts."""
    fine: SeedSection = SeedSection()
    """Seeds of the segmentation prompts: the result."""
    png: bool = True
    """Write each seed as a palette PNG too, beside Parquet."""
    confidence: bool = True
    """Keep the confidence of each pixel."""
