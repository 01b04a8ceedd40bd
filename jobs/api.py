"""What `import fmwsss` gives: the commands as functions, for notebooks and programs of one's own."""

from __future__ import annotations

from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs import steps
from fmwsss.jobs.commands import plan as plan_command
from fmwsss.jobs.commands import status as status_command
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.view.notebook import NotebookRun


def run(config: RunConfig, only: list[str] | None = None, restart_from: str | None = None) -> None:
    """Makes every stage that is not complete yet, as `fmwsss run` does.

    Args:
        config: from `load_config`.
        only: names of stages to make; None for all.
        restart_from: a stage whose outputs, and those of all stages that depend on it, are deleted first.

    Raises:
        FmwsssError: anything that a user can put right, in one line.
    """
    steps.run(config, only, restart_from)


def plan(config: RunConfig, num_images: int = 4) -> bool:
    """Prints whether a run can succeed and what it will take, as `fmwsss plan` does.

    Args:
        config: from `load_config`.
        num_images: how many images to measure with.

    Returns:
        Whether it can succeed.
    """
    return plan_command.run(config, num_images)


def status(run_url: str) -> dict[str, Any]:
    """How far a run is: what `fmwsss status --json` prints.

    Args:
        run_url: a run folder, a path or a URL.

    Returns:
        JSON: the run's stages with their counts, and its driver.
    """
    return status_command.gather(Run(Folder(run_url)))


def open(run_url: str) -> NotebookRun:  # as the word of notebooks: `fmwsss.open(RUN)`
    """A run to look at in a notebook: `fmwsss.open(RUN).seeds[image_id]` shows itself.

    Args:
        run_url: a run folder, a path or a URL.

    Returns:
        The run, read only; nothing of it is locked or written.

    Raises:
        FmwsssError: there is no run.
    """
    return NotebookRun(run_url)


def predict(config: RunConfig, images: str, truth: str | None = None, name: str = "new") -> str:
    """Predicts a folder of images with the run's trained segmenter, as `fmwsss predict` does.

    Args:
        config: of the run whose segmenter is asked.
        images: folder of images, a path or a URL.
        truth: folder of label PNGs named by id, to judge by; None for none.
        name: of the folder in `<run>/predictions/`.

    Returns:
        The folder of the predictions.

    Raises:
        FmwsssError: anything that a user can put right, in one line.
    """
    return steps.predict_new(config, images, truth, name)
