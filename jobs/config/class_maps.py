"""What makes class maps: `source` of a set of seeds in a run file (method M2, M11)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fmwsss.jobs.config.base import Count, Section, Share

Positive = Annotated[float, Field(gt=0)]


class GradCamSource(Section):
    """Softmax-GradCAM, the papers' way (M2)."""

    kind: Literal["gradcam"] = "gradcam"
    """Softmax-GradCAM."""


class WindowsSection(Section):
    """Squares of an image that go through CLIP one by one, for small objects; best at a scale above 1."""

    side_patches: Count = 14
    """Side of a window; 14 is what a ViT-B/16 was trained with."""
    stride_patches: Count = 7
    """From one window to the next; where they overlap, similarities are averaged."""

    @model_validator(mode="after")
    def _leave_no_gap(self) -> WindowsSection:
        if self.stride_patches > self.side_patches:
            raise ValueError("`stride_patches` is larger than `side_patches`: patches would be in no window")
        return self


class PatchSource(Section):
    """Similarity of patches with texts, the last block's attention repaired: F1 of M11. Depths are shares of it."""

    kind: Literal["patch"]
    """Similarity of patches with texts."""
    attention: Literal[
        "query-key", "key-key", "query-query", "value-value", "identity", "query-query+key-key", "mean-of-three"
    ] = "key-key"
    """What attends to what in the last block; `query-query+key-key` is SCLIP's sum, `mean-of-three` ExCEL's (M11)."""
    residual: bool = True
    """Keep the residual path around that attention; ClearCLIP and NACLIP leave it out (M11)."""
    mlp: bool = True
    """Keep the last block's MLP; ClearCLIP and NACLIP leave it out (M11)."""
    class_token: bool = True
    """Let patches attend to the class token too (M11)."""
    neighbourhood_patches: Positive | None = None
    """Deviation of a Gaussian that draws attention to near patches; NACLIP 5, null for none (M11)."""
    mend_outliers: bool = False
    """Replace outliers before the last block by their surroundings, as SC-CLIP (M11)."""
    similarity_depth: Share | None = None
    """Where the similarity of patches is taken that becomes half of the attention; SC-CLIP .75, null for none (M11)."""
    smoothing_depth: Share | None = None
    """Where the similarity is taken that the result is averaged by; SC-CLIP .33, null for none (M11)."""
    summed_depths: tuple[Share, Share] | None = None
    """First and last block whose summed outputs are added; SC-CLIP [.33, .83], null for none (M11)."""
    softmax_scale: Positive | None = None
    """Softmax over the image's classes and background words at this scale; null for plain similarity (M11)."""
    with_absent: bool = False
    """Let the classes that an image does not show be rivals in the softmax too (M11)."""
    windows: WindowsSection | None = None
    """Cut the image into windows; null for the whole image."""

    @model_validator(mode="after")
    def _fits(self) -> PatchSource:
        if self.summed_depths is not None and self.summed_depths[0] > self.summed_depths[1]:
            raise ValueError("`summed_depths` is [first, last]")
        if self.with_absent and self.softmax_scale is None:
            raise ValueError("`with_absent` needs a `softmax_scale`: without a softmax no class has rivals")
        return self


class GivenSource(Section):
    """Maps that were made elsewhere, found by image id (docs/formats.md)."""

    kind: Literal["given"]
    """Maps from files."""
    path: str
    """Folder or URL of `ID.npy` or `ID.npz` files, or of Parquet files such as those of another run's seeds."""
    format: Literal["npy", "npz", "parquet"]
    """Kind of the files; .npy are dictionaries as CLIP-ES and IRN save them."""
    first_key: Annotated[int, Field(ge=0)] = 0
    """Number of the first class in `keys`; 0 in CLIP-ES and IRN, 1 where 0 is background."""
    column: Literal["cam", "refined_cam"] = "refined_cam"
    """Which maps of a Parquet file."""


def _by_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


SingleSource = Annotated[
    GradCamSource | PatchSource | GivenSource, Field(discriminator="kind"), BeforeValidator(_by_name)
]


class PartSection(Section):
    """One source in a mixture."""

    source: SingleSource
    """A kind by its name, or a section; no mixture."""
    weight: Positive = 1.0
    """Of its maps in the mean."""


class MixtureSource(Section):
    """Weighted means of the maps of several sources."""

    kind: Literal["mixture"]
    """Means of several sources."""
    parts: Annotated[tuple[PartSection, ...], Field(min_length=2)]
    """The sources and their weights."""


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
