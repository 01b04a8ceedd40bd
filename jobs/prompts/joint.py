"""Coarse seeds that are renewed while the segmentation prompts learn from them: the paper's joint mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.prompts import learn_job
from fmwsss.jobs.seeds import seed
from fmwsss.jobs.seeds.maps import PROMPTS_OF
from fmwsss.jobs.stages import make_stage


@dataclass(frozen=True)
class Renewal:
    """Schedule for regenerating coarse seeds while segmentation prompts are trained.

    Attributes:
        every: iterations between two sets of seeds.
        make: the seeds for the iterations from this one on, as the name of their stage.
        drop: deletes a stage that is no longer needed.
    """

    every: int
    make: Callable[[int], str]
    drop: Callable[[str], None]


def renewal(config: RunConfig, run: Run) -> Renewal | None:
    """How the coarse seeds are renewed, in joint mode (`learn.joint_every`); else None.

    The coarse seeds of iterations i k to (i + 1) k come from the classification prompts at iteration i k. The joint
    loss of the paper, L_MCL + L_CAL, has the logits of the classification prompts in its first term and the maps of the
    segmentation prompts in its second (M4). No gradient passes through a seed, and the two sets share no parameter: so
    with the weights 1, 0 and 0, 1 (`method: paper`) that loss is minimised by the same steps when the classification
    prompts go first and leave a snapshot every k iterations. With a `learn.segmentation.classification_weight` above 0
    it is another loss, ours.

    Args:
        config: the run file.
        run: the run folder.
    """
    every = config.learn.joint_every
    if every is None:
        return None
    last_snapshot = max(learn_job.snapshots(run, PROMPTS_OF["coarse"]), default=0)

    def renew(iteration: int) -> str:
        name = f"seeds/joint/{iteration:08d}"
        file = learn_job.snapshot_file(min(iteration, last_snapshot))
        stage = seed.seeds_stage(config, name, config.seeds.coarse, PROMPTS_OF["coarse"], file, png=False)
        make_stage(stage, run, config.max_failures, advised="prompts/segmentation")
        return name

    return Renewal(every, renew, run.reset)
