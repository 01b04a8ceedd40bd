"""Segmentation prompts: from the final coarse seeds, or, in the paper's joint mode, from seeds renewed on the way."""

from __future__ import annotations

from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.prompts import learn, learn_job
from fmwsss.jobs.seeds import seed


def learn_segmentation(config: RunConfig, run: Run) -> Receipt:
    """Learns the segmentation prompts.

    In joint mode (`learn.joint_every`) the coarse seeds of iterations i k to (i + 1) k come from the classification
    prompts at iteration i k. The joint loss of the paper, L_MCL + L_CAL, has the logits of the classification prompts
    in its first term and the maps of the segmentation prompts in its second (M4). No gradient passes through a seed,
    and the two sets share no parameter: so with the weights 1, 0 and 0, 1 (the defaults) that loss is minimised by the
    same steps when the classification prompts go first and leave a snapshot every k iterations. With a
    `learn.segmentation.classification_weight` above 0 it is another loss, ours.

    Raises:
        ValueError: the stages before it are not complete, or there is no image to learn from.
    """
    every = config.learn.joint_every
    if every is None or config.prompts is not None:
        return learn.run(config, run, "segmentation")
    last_snapshot = max(learn_job.snapshots(run, "prompts/classification"), default=0)

    def renew(iteration: int) -> str:
        stage = f"seeds/joint/{iteration:08d}"
        file = learn_job.snapshot_file(min(iteration, last_snapshot))
        seed.make(config, run, stage, config.seeds.coarse, "prompts/classification", file, png=False)
        return stage

    return learn.run(config, run, "segmentation", learn.Renewal(every, renew, run.reset))
