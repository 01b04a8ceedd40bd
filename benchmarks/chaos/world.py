"""What runs under faults are of: images in a folder, weights in a file, and the ways to start a driver on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fmwsss.core.toy import models
from fmwsss.core.toy.world import draw_scene
from tests.support import cheap_stages
from tests.support.fault_injection import start_cheap, start_run

NUM_IMAGES = 10  # of runs with models
OTHER_SEED = 1000  # of the scene that takes the place of another
STAGES = ("images", "superpixels", "prompts", "seeds")

Start = Callable[[str, str, Path], subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: for people.
        start: a driver of it: with the run, the address of the cluster, and the file that its output goes to.
        images: the folder of its dataset.
        others: what the environment has where somebody goes on with other settings.
        weights: file of what superpixels depend on, and the file that takes its place.
    """

    name: str
    start: Start
    images: Path
    others: dict[str, str]
    weights: tuple[Path, Path]


def without_models(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    """Runs of tests/support/cheap_stages.py: seconds each, and every stage can be hit."""
    images = _draw(folder / "images", cheap_stages.NUM_IMAGES)
    ours, others = folder / "weights", folder / "other_weights"
    ours.write_text("ours")
    others.write_text("others")

    def start(run: str, address: str, log: Path) -> subprocess.Popen[bytes]:
        patch.setenv("CHEAP_WEIGHTS_FILE", str(ours))
        patch.setenv("CHEAP_DATASET", _dataset(images))
        return start_cheap(run, address, log)

    return Kind("without models", start, images, {"CHEAP_SETTING": "another"}, (ours, others))


def with_models(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    """Runs of the toy world, from images to fine seeds."""
    images = _draw(folder / "images", NUM_IMAGES)
    # In the same place for the workers, which have the environment that their nodes were started with.
    ours, others = folder / "sam.safetensors", folder / "other_sam.safetensors"
    shutil.copyfile(models.WEIGHTS / "sam.safetensors", ours)
    save_file({name: value * 1.01 for name, value in load_file(ours).items()}, others)
    patch.setenv("CHEAP_WEIGHTS_FILE", str(ours))
    only = [word for stage in STAGES for word in ("--only", stage)]
    sam = "sam={factory: 'tests.support.driver_with_swaps:sam'}"
    # Prompts are kept where an image was replaced, unless one asks for others.
    more = [*only, "--relearn", sam, f"dataset={_dataset(images)}"]

    def start(run: str, address: str, log: Path) -> subprocess.Popen[bytes]:
        patch.setenv("CHEAP_WEIGHTS_FILE", str(ours))
        own = [*more, *os.environ.get("CHAOS_SETTING", "").split()]
        return start_run(run, address, log, own, module="tests.support.driver_with_swaps")

    return Kind("with models", start, images, {"CHAOS_SETTING": "propose.points_per_side=7"}, (ours, others))


def replaced_image(images: Path) -> tuple[Path, bytes]:
    """The image that is replaced, and what takes its place."""
    other = images.with_name("other.png")
    Image.fromarray(draw_scene(OTHER_SEED).image).save(other)
    return images / "image-003.png", other.read_bytes()


def _dataset(images: Path) -> str:
    return f"{{kind: folder, images: {images}, labels: {images.with_suffix('.csv')}}}"


def _draw(folder: Path, num_images: int) -> Path:
    folder.mkdir(parents=True)
    scenes = {f"image-{seed:03d}": draw_scene(seed) for seed in range(num_images)}
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(folder / f"{name}.png")
    lines = [f"{name},{' '.join(scene.classes)}" for name, scene in scenes.items()]
    folder.with_suffix(".csv").write_text("\n".join(["image_id,classes", *lines, ""]))
    return folder
