"""The methods that a run file can choose for seeds, behind one function; no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float32

from fmwsss.cluster.execution.subprocess_decoder import decoder
from fmwsss.core.images import UNLIMITED
from fmwsss.core.labels import IGNORE
from fmwsss.core.seeds.baselines import crf_seed, threshold_seed, voting_seed
from fmwsss.core.seeds.sams import Seed, missing_classes, seed_image
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.jobs.config.seeds import SeedSection

MAPS_COLUMN = {"cam": "cam", "cam+caa": "refined_cam"}


def make_seed(
    section: SeedSection,
    superpixels: Superpixels,
    maps: Float32[np.ndarray, "present grid_height grid_width"],
    class_indices: Sequence[int],
    image: bytes | None,
    foreground: Float[np.ndarray, " superpixels"] | None = None,
) -> Seed:
    """The seed of one image by the method of the run file.

    Args:
        section: of the run file.
        superpixels: of the image.
        maps: of the classes that the image shows, from 0 to 1.
        class_indices: of those classes.
        image: the encoded file, which `crf` alone reads.
        foreground: of `FoldModels.decide`, which `sams` alone reads.

    Returns:
        The seed.
    """
    arguments = (superpixels, maps, class_indices, section.alpha)
    if section.method == "sams":
        options = {"ignore_below": section.ignore_below, "keep_labelled": section.keep_labelled}
        return seed_image(*arguments, **options, uncovered=section.uncovered, foreground=foreground)
    if section.method == "crf":
        assert image is not None
        seed = crf_seed(decoder().rgb(image, max_pixels=UNLIMITED), *arguments)
    else:
        seed = {"voting": voting_seed, "threshold": threshold_seed}[section.method](*arguments)
    labels = np.where(seed.confidence < section.ignore_below, np.uint8(IGNORE), seed.labels)
    return replace(seed, labels=labels, missing=missing_classes(labels, class_indices))
