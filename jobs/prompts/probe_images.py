"""A few fixed images whose class maps are looked at while prompts are learned: a strip of pictures, and a measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from PIL import Image
from torch import Tensor

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.class_maps.softmax_gradcam import normalise, softmax_gradcam
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.clip.last_block import LastBlock
from fmwsss.core.images import UNLIMITED, decode_rgb
from fmwsss.core.overlays import with_map
from fmwsss.core.resize import upsample
from fmwsss.core.schemas import superpixels_from_row
from fmwsss.core.seeds.map_agreement import explained_share, finest_regions
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.images.labelled import read_labelled

NUM_EXAMPLES = 12
NUM_SHOWN = 4
SHOWN_PX = 160


@dataclass(frozen=True)
class Example:
    """One image, what the frozen tower makes of it, and its superpixels' regions if the run has them."""

    image: UInt8[np.ndarray, "height width 3"]
    block: LastBlock
    grid: tuple[int, int]
    present: Tensor
    regions: Int32[np.ndarray, "height width"] | None


@dataclass(frozen=True)
class Examples:
    """The first images of the run."""

    rows: list[Example]
    logit_scale: float

    def look(
        self, foreground: Float[Tensor, "classes embed"], background: Float[Tensor, "backgrounds embed"]
    ) -> tuple[UInt8[np.ndarray, "height width 3"], float | None]:
        """A strip of class maps of some text embeddings, and how well they follow the superpixels.

        The measure is the mean of `explained_share` over images and their classes; None without superpixels.

        Args:
            foreground: text embeddings of classes.
            background: text embeddings of backgrounds.
        """
        shares, tiles = [], []
        for example in self.rows:
            found = softmax_gradcam(example.block, self.logit_scale, foreground, background, example.present)
            maps = normalise(found.cam).reshape(-1, *example.grid).float().cpu().numpy()
            if example.regions is not None:
                shares += [explained_share(full, example.regions) for full in upsample(maps, *example.regions.shape)]
            if len(tiles) < NUM_SHOWN:
                tiles.append(_tile(with_map(example.image, maps)))
        return np.concatenate(tiles, axis=1), float(np.mean(shares)) if shares else None


def load_examples(run: Run, part: str, vocabulary: Vocabulary, clip: FrozenClip, labels: str = "images") -> Examples:
    """The first images of a part of `images/`, through the image tower once.

    Args:
        run: the run folder.
        part: `part-00000.parquet`, ...
        vocabulary: the classes.
        clip: of the run.
        labels: the stage that has the labels, as in `read_labelled`.

    Returns:
        Images, features and regions.
    """
    rows = read_labelled(run, part, ["image_id", "image", "classes"], labels)[:NUM_EXAMPLES]
    superpixels = {}
    if run.receipt("superpixels") is not None:
        table = run.read_part("superpixels", part)
        superpixels = {
            row["image_id"]: finest_regions(superpixels_from_row(row)) for row in table[:NUM_EXAMPLES].to_pylist()
        }
    examples = []
    for row in rows:
        image = decode_rgb(row["image"], max_pixels=UNLIMITED)
        pixels = clip.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
        features = clip.encode_image(pixels)
        present = torch.zeros(1, len(vocabulary.classes), dtype=torch.bool, device=clip.device)
        present[0, [index - 1 for index in vocabulary.indices(row["classes"])]] = True
        block = clip.last_block(features.last_block_input)
        examples.append(Example(image, block, features.grid, present, superpixels.get(row["image_id"])))
    return Examples(examples, clip.logit_scale)


def _tile(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "size size 3"]:
    return np.asarray(Image.fromarray(picture).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BILINEAR))
