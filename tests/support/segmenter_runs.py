"""A run whose seeds are the truth of toy scenes, and a Mask2Former small enough to train in tests."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.images import encode_label_png
from fmwsss.core.schemas import IMAGES, SEEDS
from fmwsss.core.toy.world import draw_scene
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.stages import StartedStage, finish_stage
from tests.support.image_files import png

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "demo_segmenter.yaml")
TINY = [
    "segmenter.backbone={model_type: resnet, embedding_size: 16, hidden_sizes: [16, 16, 32, 32], depths: [1, 1, 1, 1],"
    " layer_type: basic}",
    "segmenter.options={hidden_dim: 32, feature_size: 32, mask_feature_size: 32, encoder_feedforward_dim: 32,"
    " dim_feedforward: 64, encoder_layers: 1, decoder_layers: 2, num_attention_heads: 2, num_queries: 15,"
    " train_num_points: 128}",
    "segmenter.iterations=8", "segmenter.batch_size=4", "segmenter.crop_px=64", "segmenter.short_side_px=64",
    "segmenter.warmup_iterations=0", "segmenter.preview_every=4", "segmenter.validation.num_images=4",
    "segmenter.category_cap=0.75", "predict.scales=[1.0]", "predict.flip=false", "cluster.train_workers=1",
    "cluster.num_threads=1", "dataset.num_images=10", "dataset.first_seed=0", "prompts=null",
    "predict.alpha=3", "predict.cam_weight=0", "predict.merge_queries=sum", "shard_rows=4", "propose.points_per_side=4",
]  # fmt: skip
NUM_IMAGES, SHARD_ROWS = 10, 4


def tiny_config(run: Path | str, *more: str) -> RunConfig:
    """The demo's second stage, tiny, on a run folder."""
    return load_config(CONFIG, [f"run={run}", "segmenter.engine=ray", *TINY, *more])


def make_run(
    path: Path | str, first_seed: int = 0, num_images: int = NUM_IMAGES, blank_seeds: Collection[int] = ()
) -> Run:
    """A run with complete `images/` and `seeds/fine/`, as ingest and seeding would have left them.

    The seeds of scenes in `blank_seeds` have no label at all.
    """
    run = Run(Folder(str(path)))
    for stage in ("images", "seeds/fine"):
        run.begin(stage, {})
    parts = []
    for begin in range(0, num_images, SHARD_ROWS):
        parts.append(part_name(begin // SHARD_ROWS))
        images, seeds = [], []
        for seed in range(first_seed + begin, first_seed + min(begin + SHARD_ROWS, num_images)):
            scene = draw_scene(seed)
            label = encode_label_png(scene.truth)
            painted = encode_label_png(np.full_like(scene.truth, 255)) if seed in blank_seeds else label
            height, width = scene.truth.shape
            own: dict[str, Any] = {"image_id": f"toy-{seed:06d}", "height_px": height, "width_px": width}
            own["classes"] = list(scene.classes)
            confidence = (scene.truth > 0).astype("uint8") * 155 + 100
            image = {"image": png(scene.image), "sha256": hashlib.sha256(png(scene.image)).hexdigest()}
            images.append({**dict.fromkeys(IMAGES.names), **own, **image, "truth": label})
            seeds.append({**dict.fromkeys(SEEDS.names), **own, "seed": painted, "confidence": png(confidence)})
        run.write_part("images", parts[-1], images, IMAGES, [])
        run.write_part("seeds/fine", parts[-1], seeds, SEEDS, [])
    for stage in ("images", "seeds/fine"):
        finish_stage(run, StartedStage(stage, {}, set(), None), parts, num_images, 0)
    return run
