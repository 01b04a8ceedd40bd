"""Sources of class maps behind one interface: what makes maps of the present classes of a batch of images.

A source sees a `View`: images of one grid at one scale, perhaps mirrored. Sources of one call share what the image
tower makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fmwsss.core.class_maps.patch_embedding import PatchEmbedding
from fmwsss.core.class_maps.patch_similarity import decide, min_max, windows_of
from fmwsss.core.class_maps.softmax_gradcam import normalise, softmax_gradcam
from fmwsss.core.clip.frozen_clip import FrozenClip, ImageFeatures
from fmwsss.core.errors import InputError


@dataclass(frozen=True, eq=False)
class View:
    """Images of one grid as a source sees them.

    Attributes:
        clip: the frozen CLIP.
        pixels: as `FrozenClip.preprocess` gives them.
        present: which classes each image shows.
        foreground: text embeddings of the classes, L2-normalised.
        background: text embeddings of the surroundings, L2-normalised.
        blocks: whose outputs the sources of this call read, from 0.
        num_attention_blocks: whose attention is averaged; 0 where no affinity is asked for.
    """

    clip: FrozenClip
    pixels: Float[Tensor, "images 3 height width"]
    present: Bool[Tensor, "images classes"]
    foreground: Float[Tensor, "classes embed"]
    background: Float[Tensor, "backgrounds embed"]
    blocks: tuple[int, ...] = ()
    num_attention_blocks: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        height, width = self.pixels.shape[2:]
        return height // self.clip.patch_size, width // self.clip.patch_size

    @cached_property
    def features(self) -> ImageFeatures:
        """What the image tower makes of the whole images: once for all sources, and not before one asks."""
        return self.clip.encode_image(self.pixels, self.num_attention_blocks, self.blocks)

    @property
    def kept(self) -> dict[int, Float[Tensor, "images all_tokens width"]]:
        """Outputs of `blocks`."""
        return dict(zip(sorted(self.blocks), self.features.block_outputs, strict=True))

    @property
    def texts(self) -> Float[Tensor, "texts embed"]:
        """Classes, then backgrounds."""
        return torch.cat([self.foreground, self.background])


@dataclass(frozen=True, eq=False)
class ViewMaps:
    """What a source makes of a view.

    Attributes:
        maps: 0 to 1, one row per (image, present class), ordered by image and then class.
        background: 0 to 1; None from a source that has no map of it.
        raw: the same maps before they were normalised; None from a source whose maps have no such form.
    """

    maps: Float[Tensor, "rows tokens"]
    background: Float[Tensor, "images tokens"] | None = None
    raw: Float[Tensor, "rows tokens"] | None = None


@runtime_checkable
class MapSource(Protocol):
    """What makes class maps. Small, frozen and picklable."""

    def blocks_kept(self, num_blocks: int) -> set[int]:
        """Blocks of the image tower, from 0, whose outputs the source reads."""
        ...

    def maps(self, view: View) -> ViewMaps:
        """Maps of the classes that the images of a view show."""
        ...


@dataclass(frozen=True)
class GradCam:
    """Softmax-GradCAM (method M2)."""

    def blocks_kept(self, num_blocks: int) -> set[int]:
        """None."""
        return set()

    def maps(self, view: View) -> ViewMaps:
        """See `softmax_gradcam`."""
        block = view.clip.last_block(view.features.last_block_input)
        arguments = (view.clip.logit_scale, view.foreground, view.background, view.present)
        raw = softmax_gradcam(block, *arguments).cam
        return ViewMaps(normalise(raw), raw=raw)


@dataclass(frozen=True)
class Windows:
    """Squares that an image is cut into before the image tower, in patches; where they overlap cosines are averaged."""

    side_patches: int = 14
    stride_patches: int = 7


@dataclass(frozen=True)
class PatchText:
    """Similarity of each patch with the texts (method M11, F1).

    Attributes:
        embedding: how patches are embedded.
        softmax_scale: see `decide`; None: plain cosines.
        with_absent: see `decide`.
        windows: of the image at its scale; None: the image as a whole.
    """

    embedding: PatchEmbedding = field(default_factory=PatchEmbedding)
    softmax_scale: float | None = None
    with_absent: bool = False
    windows: Windows | None = None

    def blocks_kept(self, num_blocks: int) -> set[int]:
        """Those of the embedding, unless each window has its own."""
        return self.embedding.blocks_kept(num_blocks) if self.windows is None else set()

    def maps(self, view: View) -> ViewMaps:
        """See `decide`; every map is then scaled to 0..1."""
        found = decide(self._similarity(view), view.present, self.softmax_scale, self.with_absent)
        return ViewMaps(min_max(found.maps), found.background)

    def _similarity(self, view: View) -> Float[Tensor, "images tokens texts"]:
        if self.windows is None:
            return self.embedding.embed(view.clip, view.features, view.kept) @ view.texts.T
        clip, num_images = view.clip, len(view.pixels)
        blocks = sorted(self.embedding.blocks_kept(num_blocks_of(clip)))
        places = list(windows_of(view.grid, self.windows.side_patches, self.windows.stride_patches))
        cuts = [view.pixels[:, :, _in_pixels(rows, clip), _in_pixels(columns, clip)] for rows, columns in places]
        sums = view.pixels.new_zeros(num_images, *view.grid, len(view.texts))
        counts = view.pixels.new_zeros(*view.grid, 1)
        # No more tokens go through the tower together than those of the whole images.
        at_once = max(1, view.pixels[0, 0].numel() // cuts[0][0, 0].numel())
        for first in range(0, len(places), at_once):
            own = places[first : first + at_once]
            features = clip.encode_image(torch.cat(cuts[first : first + at_once]), blocks_kept=blocks)
            kept = dict(zip(blocks, features.block_outputs, strict=True))
            similarity = self.embedding.embed(clip, features, kept) @ view.texts.T
            of_windows = similarity.unflatten(1, features.grid).unflatten(0, (len(own), num_images))
            for (rows, columns), values in zip(own, of_windows, strict=True):
                sums[:, rows, columns] += values
                counts[rows, columns] += 1
        return (sums / counts).flatten(1, 2)


@dataclass(frozen=True)
class Mixture:
    """Weighted means of the maps of several sources.

    Attributes:
        sources: that make maps of images.
        weights: of the sources, and then of those maps that are given.
    """

    sources: tuple[MapSource, ...]
    weights: tuple[float, ...]

    def blocks_kept(self, num_blocks: int) -> set[int]:
        """Those of all sources."""
        return set[int]().union(*(source.blocks_kept(num_blocks) for source in self.sources))


def build(settings: Mapping[str, Any]) -> MapSource | Mixture:
    """A source from plain values: `kind` and the arguments of its class.

    Args:
        settings: `kind` is `gradcam`, `patch` or `mixture`; of a `patch` the arguments of `PatchEmbedding` stand beside
            those of `PatchText`. A mixture has `parts`, each a `source` and its `weight`; given ones come last.

    Raises:
        ValueError: an unknown kind.
    """
    own = dict(settings)
    kind = own.pop("kind")
    if kind == "gradcam":
        return GradCam()
    if kind == "patch":
        names = {each.name for each in fields(PatchEmbedding)}
        embedding = PatchEmbedding(**{name: own.pop(name) for name in list(own) if name in names})
        windows = own.pop("windows", None)
        return PatchText(embedding, windows=Windows(**windows) if windows else None, **own)
    if kind == "mixture":
        sources = [build(part["source"]) for part in own["parts"] if part["source"]["kind"] != "given"]
        assert not any(isinstance(source, Mixture) for source in sources)
        in_order = sorted(own["parts"], key=lambda part: part["source"]["kind"] == "given")
        return Mixture(tuple(sources), tuple(part["weight"] for part in in_order))  # type: ignore[arg-type]
    raise InputError(f"there is no source of class maps of kind {kind!r}")


def num_blocks_of(clip: FrozenClip) -> int:
    """Blocks of the image tower."""
    visual: Any = clip.model.visual
    return len(visual.transformer.resblocks)


def _in_pixels(patches: slice, clip: FrozenClip) -> slice:
    return slice(patches.start * clip.patch_size, patches.stop * clip.patch_size)
