"""What makes class maps: `source` of a set of seeds in a run file (method M2, M11)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fmwsss.jobs.config.base import Count, Section, Share

Positive = Annotated[float, Field(gt=0)]


class GradCamSource(Section):
    """Softmax-GradCAM (method M2), the papers' way."""

    kind: Literal["gradcam"] = "gradcam"


class WindowsSection(Section):
    """Squares of an image that go through CLIP one by one, for small objects; best at a scale above 1."""

    side_patches: Count = 14
    stride_patches: Count = 7

    @model_validator(mode="after")
    def _leave_no_gap(self) -> WindowsSection:
        if self.stride_patches > self.side_patches:
            raise ValueError("`stride_patches` is larger than `side_patches`: patches would be in no window")
        return self


class PatchSource(Section):
    """Similarity of patches with texts, the last block's attention repaired: F1 of method M11. Depths are shares.

    `softmax_scale` null: the cosines themselves. Else a softmax over the image's classes, its background words and,
    `with_absent`, all other classes.
    """

    kind: Literal["patch"]
    attention: Literal[
        "query-key", "key-key", "query-query", "value-value", "identity", "query-query+key-key", "mean-of-three"
    ] = "key-key"
    residual: bool = True
    mlp: bool = True
    class_token: bool = True
    neighbourhood_patches: Positive | None = None  # NACLIP: 5
    mend_outliers: bool = False
    similarity_depth: Share | None = None  # SC-CLIP: .75
    smoothing_depth: Share | None = None  # SC-CLIP: .33
    summed_depths: tuple[Share, Share] | None = None  # SC-CLIP: [.33, .83]
    softmax_scale: Positive | None = None  # CorrCLIP 40, SC-CLIP 50
    with_absent: bool = False
    windows: WindowsSection | None = None

    @model_validator(mode="after")
    def _fits(self) -> PatchSource:
        if self.summed_depths is not None and self.summed_depths[0] > self.summed_depths[1]:
            raise ValueError("`summed_depths` is [first, last]")
        if self.with_absent and self.softmax_scale is None:
            raise ValueError("`with_absent` needs a `softmax_scale`: without a softmax no class has rivals")
        return self


class GivenSource(Section):
    """Maps that were made elsewhere, found by image id (docs/formats.md).

    A folder of `ID.npy` or `ID.npz`, or of Parquet files such as those of another run's seeds.
    """

    kind: Literal["given"]
    path: str
    format: Literal["npy", "npz", "parquet"]
    first_key: Annotated[int, Field(ge=0)] = (
        0  # number of the first class: 0 in CLIP-ES and IRN, 1 where 0 is background
    )
    column: Literal["cam", "refined_cam"] = "refined_cam"  # of Parquet


def _by_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


SingleSource = Annotated[
    GradCamSource | PatchSource | GivenSource, Field(discriminator="kind"), BeforeValidator(_by_name)
]


class PartSection(Section):
    """One source in a mixture."""

    source: SingleSource
    weight: Positive = 1.0


class MixtureSource(Section):
    """Weighted means of the maps of several sources."""

    kind: Literal["mixture"]
    parts: Annotated[tuple[PartSection, ...], Field(min_length=2)]


SourceSection = Annotated[
    GradCamSource | PatchSource | GivenSource | MixtureSource,
    Field(discriminator="kind"),
    BeforeValidator(_by_name),
]


def given_sources(source: Section) -> list[GivenSource]:
    """The given sources of a source, in their order."""
    parts = [part.source for part in source.parts] if isinstance(source, MixtureSource) else [source]
    return [part for part in parts if isinstance(part, GivenSource)]


def needs_clip(source: Section) -> bool:
    """Whether anything but given maps is asked for."""
    return not isinstance(source, GivenSource) and not (
        isinstance(source, MixtureSource) and all(isinstance(part.source, GivenSource) for part in source.parts)
    )
