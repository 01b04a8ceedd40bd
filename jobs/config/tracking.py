"""Who is told of a run: trackers of experiments, and a command or an address at its end."""

from __future__ import annotations

from fmwsss.jobs.config.base import Section


class TrackingSection(Section):
    """Trackers beside TensorBoard, which always has its files in the run folder.

    Told by the driver, so their packages (extras `mlflow`, `wandb`) and keys are needed where that runs. Not kept in
    the manifest of a run: a start from a run folder alone tells nobody.
    """

    mlflow: str | None = None
    """Address of MLflow: a server's URL, `sqlite:///mlflow.db` or `file:/shared/mlruns`."""
    wandb: str | None = None
    """Project of Weights & Biases; its key comes from `WANDB_API_KEY`."""
    experiment: str = "fmwsss"
    """Name of the experiment in MLflow."""


class NotifySection(Section):
    """What is done at the end of a run, good or bad; not kept in the manifest, for it may hold a secret."""

    command: str | None = None
    """A command; it finds FMWSSS_RUN, FMWSSS_STATUS (complete, failed, stopped, budget) and FMWSSS_MESSAGE in its
    environment."""
    url: str | None = None
    """An address that gets the same as JSON by POST: `run`, `status` and `text`, as Slack's webhooks take it."""
