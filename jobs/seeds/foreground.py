"""Stages `foreground/coarse` and `foreground/fine`: one task learns what foreground looks like in the whole dataset."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray

from fmwsss.cluster.storage.ledger import FOREGROUND_FILE, NUM_READERS, Receipt, Run
from fmwsss.cluster.telemetry.progress import StageProgress
from fmwsss.core.schemas import features_of
from fmwsss.core.seeds.foreground import NUM_COMPONENTS, NUM_FOLDS, PENALTY, evenly, fit_folds, fold_of
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.declarations import Declaration, Stage, StepCost
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, upstream

# Sixty-odd numbers are learned: of more superpixels than these, images are taken evenly.
MOST_SUPERPIXELS = 100_000
SUPERPIXELS_PER_IMAGE, THOUSANDS_PER_STEP = 50, 20  # for the plan


def _stages(config: RunConfig, which: str) -> list[Stage]:
    section: SeedSection = getattr(config.seeds, which)
    if section.foreground is None:
        return []
    return [
        Stage(
            name=f"foreground/{which}",
            unit="iterations",
            reads=(f"maps/{which}",),
            settings=lambda: {
                "folds": NUM_FOLDS,
                "components": NUM_COMPONENTS,
                "penalty": PENALTY,
                "most_superpixels": MOST_SUPERPIXELS,
            },
            make=_make,
            cost=StepCost(
                step="foreground_fit_s",
                arguments=(),
                num_steps=_num_steps,
                batch_size=THOUSANDS_PER_STEP,
                stand_in="write_untrained_foreground",
            ),
        )
    ]


DECLARATIONS = (
    Declaration(
        "foreground/coarse",
        "Learn what foreground looks like, for the coarse seeds (where `seeds.coarse.foreground` asks for it).",
        lambda config: _stages(config, "coarse"),
    ),
    Declaration(
        "foreground/fine",
        "Learn what foreground looks like, for the fine seeds (where `seeds.fine.foreground` asks for it).",
        lambda config: _stages(config, "fine"),
    ),
)


def _num_steps(num_images: int) -> int:
    """Fits, each to `THOUSANDS_PER_STEP` thousand superpixels, that take as long as those of all folds."""
    num_superpixels = min(num_images * SUPERPIXELS_PER_IMAGE, MOST_SUPERPIXELS)
    return NUM_FOLDS * -(-num_superpixels // (1000 * THOUSANDS_PER_STEP))


def _make(stage: Stage, run: Run) -> Receipt:
    receipts = upstream(run, stage.name, stage.reads)
    started = begin_stage(run, stage.name, stage.settings(), receipts)
    if started.receipt:
        return started.receipt
    (maps,) = receipts
    with StageProgress(stage.name, NUM_FOLDS, "models") as progress:
        work: Any = ray.remote(fit).options(num_cpus=1)
        told: Any = ray.get(work.remote(run, maps.stage, tuple(maps.parts), stage.name))
        progress.advance(NUM_FOLDS)
    if told["num_unfitted"]:
        print(
            f"{stage.name}: {told['num_unfitted']} of {NUM_FOLDS} models have nothing to learn from (too few images, "
            "or all of their superpixels alike); there the maps decide alone",
            flush=True,
        )
    return finish_stage(run, started, parts=[FOREGROUND_FILE], num_rows=told["num_superpixels"], num_failures=0)


def fit(run: Run, maps: str, parts: tuple[str, ...], stage: str) -> dict[str, int]:
    """Fits the models to the superpixels of all parts and writes them; a task, whose node may be any.

    Args:
        run: the run folder.
        maps: the stage of the maps.
        parts: of that stage.
        stage: where the models go.

    Returns:
        `num_superpixels` that were fitted to, `num_unfitted` models that had nothing to learn from.

    Raises:
        StageError: no image has superpixels and classes.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        tables = pool.map(lambda part: run.read_part(maps, part, columns=["image_id", "margins"]), parts)
        sizes = {row["image_id"]: len(row["margins"]) for table in tables for row in table.to_pylist()}
    names = sorted(name for name, size in sizes.items() if size)
    if not names:
        raise StageError(f"stage {stage}: no image has superpixels and classes: there is no foreground to be learned")
    chosen = {names[number] for number in evenly([sizes[name] for name in names], MOST_SUPERPIXELS)}
    features: dict[str, np.ndarray] = {}
    margins: dict[str, np.ndarray] = {}
    for part in parts:
        for row in run.read_part(maps, part, columns=["image_id", "margins", "features"]).to_pylist():
            name = row["image_id"]
            if name in chosen:
                margins[name] = np.asarray(row["margins"], np.float32)
                features[name] = features_of(row["features"], len(margins[name]))
    owners = sorted(margins)
    folds = np.repeat(fold_of(owners), [len(margins[name]) for name in owners])
    models = fit_folds(
        np.concatenate([features[name] for name in owners]), np.concatenate([margins[name] for name in owners]), folds
    )
    run.folder.child(stage).write(FOREGROUND_FILE, models.to_bytes())
    return {"num_superpixels": len(folds), "num_unfitted": len(models.is_fitted) - sum(models.is_fitted)}
