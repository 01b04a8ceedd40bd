"""`fmwsss try IMAGE --labels person,horse`: one photograph, the models of a run file; no run, no Ray, no cluster."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from PIL import Image, ImageDraw

from fmwsss.cluster.models.loaders import load_clip, load_sam
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import FOREGROUND_FILE, PROMPTS_FILE
from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.class_maps.maps import ClassMaps, mixed
from fmwsss.core.class_maps.sources import build
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.errors import InputError
from fmwsss.core.overlays import with_labels, with_map, with_superpixels
from fmwsss.core.prompts.learner import PromptLearner, handmade_embeddings
from fmwsss.core.seeds.foreground import FoldModels, foreground_margins, pooled_tokens
from fmwsss.core.seeds.sams import superpixel_scores
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.superpixels.sam import propose
from fmwsss.jobs.commands.photograph import Photograph
from fmwsss.jobs.config.class_maps import MixtureSource, given_sources, needs_clip
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.seeds.given import read_given, rows_of
from fmwsss.jobs.seeds.methods import MAPS_COLUMN, make_seed

LEVELS = ((2, "whole"), (1, "part"), (0, "sub-part"))
PANEL_WIDTH_PX, CAPTION_PX, GAP_PX, PANELS_PER_ROW = 420, 24, 6, 4


def run(config: RunConfig, photograph: Photograph, output: str) -> list[str]:
    """Writes one PNG: photograph, seed, superpixels by level, and the map of every class.

    Args:
        config: a run file. If its run has learned prompts those are used (segmentation before classification), else
            hand-made ones.
        photograph: an image with its labels.
        output: path of the PNG.

    Returns:
        lines that say what was found.

    Raises:
        ValueError: a model that cannot be had, or the PNG can't be written.
    """
    vocabulary, section = config.resolve_vocabulary(), config.seeds.fine
    image, indices, image_id = photograph.pixels, list(photograph.class_indices), photograph.image_id
    maps, prompts = _maps(config, image, indices, image_id)
    superpixels = propose(load_sam(config.sam.spec()), image, ProposalSettings(**config.propose.model_dump()))
    chosen = getattr(maps, MAPS_COLUMN[section.maps])
    words = f"{section.source.kind} maps" if prompts is None else f"{section.source.kind} maps of {prompts} prompts"
    decision = _foreground(config, maps, superpixels, superpixel_scores(superpixels, chosen, section.alpha), image_id)
    if decision is not None:
        words += ", foreground as the run has learned it"
    seed = make_seed(section, superpixels, chosen, indices, photograph.data, decision)

    names = [vocabulary.classes[index - 1] for index in indices]
    panels = {"image": image, f"seed ({section.method})": with_labels(image, seed.labels)}
    panels |= {name: with_superpixels(image, superpixels, level) for level, name in LEVELS}
    panels |= {f"{section.maps}: {name}": with_map(image, own[None]) for name, own in zip(names, chosen, strict=True)}
    try:
        Path(output).write_bytes(contact_sheet(panels))
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}") from None
    shares = [f"{name} {np.mean(seed.labels == index):.0%}" for name, index in zip(names, indices, strict=True)]
    missing = [vocabulary.classes[index - 1] for index in seed.missing]
    return [
        f"{len(superpixels)} superpixels, {words}; pixels: {', '.join(shares)}",
        f"mean confidence {seed.confidence.mean():.2f}, {1 - seed.coverage:.0%} of the pixels in no superpixel"
        + (f"; without any pixel: {', '.join(missing)}" if missing else ""),
        output,
    ]


def _maps(
    config: RunConfig, image: UInt8[np.ndarray, "height width 3"], indices: list[int], image_id: str
) -> tuple[ClassMaps, str | None]:
    """The maps that the fine seeds would be made of, and which prompts they come from."""
    section, vocabulary = config.seeds.fine, config.resolve_vocabulary()
    names = [vocabulary.classes[index - 1] for index in indices]
    sources = given_sources(section.source)
    given = [read_given(own, image_id, names, vocabulary, rows_of(own, [image_id], "")) for own in sources]
    if not needs_clip(section.source):
        parts = section.source.parts if isinstance(section.source, MixtureSource) else ()
        return mixed(given, [part.weight for part in parts] or [1.0]), None
    clip = load_clip(config.clip.spec())
    foreground, background, prompts = text_of(config, clip)
    num_blocks = section.num_attention_blocks if section.has_affinity else 0
    settings = (section.box_threshold, section.num_sinkhorn, section.scales, num_blocks)
    more = {"box_on": section.box_on, "affinity_map": section.affinity_map, "max_side_px": section.max_side_px}
    more |= {"looks": section.foreground}
    source = build(section.source.model_dump())
    text = (foreground, background)
    return map_classes(clip, [image], [indices], *text, *settings, source, section.flip, given=[given], **more)[
        0
    ], prompts


def _foreground(
    config: RunConfig,
    maps: ClassMaps,
    superpixels: Superpixels,
    scores: Float32[np.ndarray, "superpixels background_and_present"],
    image_id: str,
) -> Float64[np.ndarray, " superpixels"] | None:
    """What the run has learned of foreground, about this image; None where it has learned nothing, or not yet."""
    folder = Folder(config.run).child("foreground/fine")
    if not config.seeds.fine.foreground or not len(superpixels) or not folder.exists(FOREGROUND_FILE):
        return None
    assert maps.looks is not None
    models = FoldModels.from_bytes(folder.read(FOREGROUND_FILE))
    return models.decide(image_id, pooled_tokens(superpixels, maps.looks), foreground_margins(scores))


def text_of(config: RunConfig, clip: FrozenClip) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Text embeddings of classes and backgrounds, from the best prompts that the run has.

    Args:
        config: the run file; `seeds.fine.prompts` says whether learned ones are wanted.
        clip: of the run.

    Returns:
        Embeddings of the classes and of the backgrounds, float32 of unit length, one row each; where they come from, in
        words: learned ones of segmentation, else of classification, else hand-made.
    """
    vocabulary, section = config.resolve_vocabulary(), config.seeds.fine
    for which in ("segmentation", "classification") if section.prompts == "learned" else ():
        folder = Folder(config.run).child(f"prompts/{which}")
        if folder.exists(PROMPTS_FILE):
            with torch.no_grad():
                foreground, background = PromptLearner.from_bytes(clip, vocabulary, folder.read(PROMPTS_FILE))()
            return foreground, background, f"learned {which}"
    return *handmade_embeddings(clip, vocabulary, section.templates), "hand-made"


def contact_sheet(panels: dict[str, UInt8[np.ndarray, "height width 3"]]) -> bytes:
    """Pictures of one shape under their names, in rows, as a PNG."""
    height, width = next(iter(panels.values())).shape[:2]
    size = (PANEL_WIDTH_PX, max(1, round(height * PANEL_WIDTH_PX / width)))
    columns = min(PANELS_PER_ROW, len(panels))
    step = (size[0] + GAP_PX, size[1] + CAPTION_PX + GAP_PX)
    sheet = Image.new("RGB", (columns * step[0] + GAP_PX, -(-len(panels) // columns) * step[1] + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, pixels) in enumerate(panels.items()):
        left, top = GAP_PX + number % columns * step[0], GAP_PX + number // columns * step[1]
        draw.text((left, top + 6), name, fill="black")
        sheet.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (left, top + CAPTION_PX))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
