"""`fmwsss tune RUN_FILE`: which source, alpha and scales suit a data set, by a sample and no ground truth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.class_maps.clip_maps import map_classes
from fmwsss.core.class_maps.sources import build
from fmwsss.core.images import UNLIMITED, decode_rgb
from fmwsss.core.schemas import superpixels_from_row
from fmwsss.core.seeds.judge import Agreement
from fmwsss.core.seeds.sams import seed_image
from fmwsss.jobs.commands.try_image import text_of
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images.labelled import read_labelled
from fmwsss.jobs.stages import StageError

SOURCES: tuple[dict[str, Any], ...] = ({"kind": "gradcam"}, {"kind": "patch"})
ALPHAS = (0.3, 0.6, 1.0)
SCALES = ((1.0,), (1.0, 1.5))

Labels = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Candidate:
    """One configuration of the fine seeds.

    Attributes:
        source: of the maps.
        scales: of the image.
        alpha: exponent of the background score.
    """

    source: str
    scales: tuple[float, ...]
    alpha: float

    def overrides(self) -> str:
        """What to write behind the run file."""
        maps = f"seeds.fine.source={self.source} seeds.fine.maps=cam"
        return f"{maps} seeds.fine.alpha={self.alpha:g} 'seeds.fine.scales={list(self.scales)}'"


CANDIDATES = tuple(
    Candidate(source["kind"], scales, alpha) for source, scales, alpha in itertools.product(SOURCES, SCALES, ALPHAS)
)


def measure(
    config: RunConfig, count: int, on_image: Callable[[str, Sequence[Labels]], None] | None = None
) -> list[tuple[Candidate, float]]:
    """The candidates with their agreement, the best first.

    Args:
        config: a run file whose run has images and superpixels. Prompts are those that it has learned, else hand-made.
        count: images of the sample.
        on_image: told the id of each image of the sample and its labels by every candidate.

    Raises:
        StageError: the run has no images and superpixels yet, or no image with classes and superpixels.
    """
    vocabulary, section = config.resolve_vocabulary(), config.seeds.fine
    clip = load_clip(config.clip.spec())
    foreground, background, _ = text_of(config, clip)
    agreement, num_images = Agreement(len(CANDIDATES), 1 + len(vocabulary.classes)), 0
    for row in _sample(config, count):
        num_images += 1
        image, indices = decode_rgb(row["image"], UNLIMITED), sorted(vocabulary.indices(row["classes"]))
        superpixels = superpixels_from_row(row["superpixels"])
        labels = []
        for source, scales in itertools.product(SOURCES, SCALES):
            settings = (section.box_threshold, section.num_sinkhorn, scales, 0)
            (maps,) = map_classes(
                clip, [image], [indices], foreground, background, *settings, build(source),
                max_side_px=section.max_side_px,
            )  # fmt: skip
            labels += [
                seed_image(superpixels, maps.cam, indices, alpha, uncovered=section.uncovered).labels
                for alpha in ALPHAS
            ]
        agreement.add(labels)
        if on_image:
            on_image(row["image_id"], labels)
    if not num_images:
        raise StageError(f"{config.run} has no image with classes and superpixels")
    scores = agreement.scores()
    return [(CANDIDATES[number], float(scores[number])) for number in np.argsort(-scores, kind="stable")]


def run(config: RunConfig, count: int) -> list[str]:
    """Compares candidates of settings by how far each agrees with the others, without any ground truth.

    Args:
        config: the run file, whose run has superpixels.
        count: of images that are looked at.

    Returns:
        Lines for people: every candidate with its agreement, the best first, and the settings of that one.
    """
    torch.set_num_threads(config.cluster.num_threads)
    found = measure(config, count)
    lines = [f"{score:.3f}  {one.source}, scales {list(one.scales)}, alpha {one.alpha:g}" for one, score in found]
    return [*lines, f"most agreed with: {found[0][0].overrides()}"]


def _sample(config: RunConfig, count: int) -> Iterator[dict[str, Any]]:
    """Images with classes and superpixels, spread over the parts."""
    run = Run(Folder(config.run))
    for stage in ("images", *config.labels.read, "superpixels"):
        if run.receipt(stage) is None:
            raise StageError(
                f"{config.run} has no {stage} yet: `fmwsss run RUN_FILE --only images --only superpixels` makes them"
            )
    parts = run.parts("images")
    per_part = max(1, -(-count // len(parts)))
    for part in parts:
        known = {row["image_id"]: row for row in run.read_part("superpixels", part).to_pylist()}
        rows = read_labelled(run, part, ["image_id", "image", "classes"], config.labels.stage)
        usable = [row for row in rows if row["classes"] and row["image_id"] in known]
        for row in usable[: min(per_part, count)]:
            count -= 1
            yield {**row, "superpixels": known[row["image_id"]]}
