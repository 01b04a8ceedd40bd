"""Section `seeds` of a run file: from class maps and superpixels to seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmwsss.jobs.config.base import Count, Section, Share


class SeedSection(Section):
    """From maps and superpixels to a seed (method M2.2, M5.2 and M5.4).

    `maps` says which maps classify the superpixels; both are stored and judged. `method`: superpixels classified by the
    maps (`sams`), or what it is compared with: a dense CRF on the maps (`crf`), SEPL voting, or the maps alone. Maps at
    several `scales` are averaged; the papers have one.
    """

    method: Literal["sams", "crf", "voting", "threshold"] = "sams"
    ignore_below: Share = 0.0  # pixels of lower confidence become 255; CLIP-ES has .95 with its CRF
    keep_labelled: bool = False  # never let a labelled class vanish
    maps: Literal["cam", "cam+caa"] = "cam+caa"
    alpha: Annotated[float, Field(gt=0)]
    box_threshold: Share | None
    num_sinkhorn: Annotated[int, Field(ge=0)] = 1
    num_attention_blocks: Count = 8  # CLIP-ES: the last 8 of 12 make the affinity; all, where a CLIP has fewer
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1)] = (1.0,)

    @model_validator(mode="after")
    def _only_superpixels_can_be_given_away(self) -> SeedSection:
        if self.keep_labelled and self.method != "sams":
            raise ValueError("`keep_labelled` needs `method: sams`")
        return self


class SeedStages(Section):
    """Coarse seeds from the classification prompts, fine seeds from the segmentation prompts."""

    coarse: SeedSection
    fine: SeedSection
    png: bool = True
    confidence: bool = True
