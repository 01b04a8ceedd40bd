"""A run without models, for the tests of faults: `python -m tests.support.cheap_stages RUN ADDRESS [STAGE ...]`.

Everything around the models is the real thing (ingest, decoding, operators of superpixels and seeds, ledger, lock, Ray
Data); the replicas are actors that sleep and always find the same. So a run takes seconds, and every stage of it can be
hit. benchmarks/chaos does the same with models.

CHEAP_CLOCK_FILE: of the seconds by which the clock is wrong that numbers a driver's claims; it may change at any time.
CHEAP_WEIGHTS_FILE: a file on whose content superpixels depend, as on the weights of a model.
CHEAP_SETTING: a setting on which superpixels depend.
CHEAP_DATASET: of the run file, in place of drawn scenes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.scaling import AS_FOUND, IdleClip, IdleSam
from fmwsss.cluster.execution.meter import Meter
from fmwsss.cluster.execution.session import session
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.storage import driver_lock
from fmwsss.cluster.storage.driver_lock import hold
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.spending import Budget, Prices
from fmwsss.cluster.telemetry.progress import running
from fmwsss.jobs import steps
from fmwsss.jobs.cli import _told_in_lines
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.images import ingest
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.seeds import seed
from fmwsss.jobs.stages import demand_unchanged
from fmwsss.jobs.superpixels import propose
from tests.support.fault_injection import DEMO

NUM_IMAGES, SHARD_ROWS = 24, 2
SECONDS_PER_IMAGE = 0.3
STAGES = ["images", "superpixels", "seeds/coarse"]
SETTINGS = [f"dataset.num_images={NUM_IMAGES}", f"shard_rows={SHARD_ROWS}"]


def main() -> None:
    url, address, *stages = sys.argv[1:]
    step_clock()
    dataset = os.environ.get("CHEAP_DATASET")
    config = load_config(DEMO, [f"run={url}", *SETTINGS, *([f"dataset={dataset}"] if dataset else [])])
    run = Run(Folder(url))
    asked = stages_of(config)
    with _told_in_lines():
        run.folder.probe()
        with hold(run.folder, running) as claim:
            run = Run(run.folder.guarded(claim))
            due = [stage for stage in asked if not stages or stage.name in stages]
            demand_unchanged(due, run)
            run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"}), "stages": STAGES})
            with session(address):
                steps._make_all(config, run, due, asked, Meter(run.folder, Prices(), Budget()))


def step_clock() -> None:
    """From here on the clock that numbers this driver's claims is wrong by what CHEAP_CLOCK_FILE says."""
    if path := os.environ.get("CHEAP_CLOCK_FILE"):
        wrong = {"time": lambda: time.time() + float(Path(path).read_text() or 0)}
        driver_lock.time = SimpleNamespace(**{**vars(time), **wrong})  # type: ignore[assignment]


def settings_of_superpixels() -> dict[str, Any]:
    found: dict[str, Any] = {"setting": os.environ.get("CHEAP_SETTING", "")}
    if path := os.environ.get("CHEAP_WEIGHTS_FILE"):
        found["sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return found


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages of images and superpixels, and the coarse seeds, with models that take no time but a sleep."""

    def decode(run: Run, stage: str) -> Operator:
        return Operator(decode_shard, {"run": run, "stage": stage}, num_cpus=0.5)

    def superpixels(run: Run) -> list[Operator]:
        sam = {"seconds_per_image": SECONDS_PER_IMAGE, "height_px": 128, "width_px": 128}
        model = Operator(IdleSam, sam, num_cpus=0.5, num_replicas=2)
        write = Operator(propose.write_shard, {"run": run, "settings": AS_FOUND, "may_be_known": False}, num_cpus=0.5)
        return [decode(run, "superpixels"), model, write]

    def seeds(run: Run) -> list[Operator]:
        model = Operator(IdleClip, {"seconds_per_image": SECONDS_PER_IMAGE}, num_cpus=0.5, num_replicas=2)
        section = SeedSection(maps="cam", alpha=0.6, box_threshold=None)
        arguments = {"run": run, "stage": STAGES[2], "vocabulary": config.resolve_vocabulary(), "section": section}
        write = Operator(seed.write_shard, {**arguments, "png": True, "confidence": True}, num_cpus=0.5)
        return [decode(run, STAGES[2]), model, write]

    return [
        ingest.images_stage(config),
        Stage("superpixels", "images", ("images",), settings_of_superpixels, operators=superpixels, of_pixels=True),
        Stage(STAGES[2], "images", ("images", "superpixels"), operators=seeds),
    ]


if __name__ == "__main__":
    main()
