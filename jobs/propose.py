"""Stage `superpixels`: SAM's masks for every image, once per image and SAM."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from cluster.ledger import Receipt, Run
from cluster.replicas import SamReplica
from cluster.resources import plan_replicas
from cluster.rows import map_rows, split_rows, summary
from cluster.shards import Operator
from fmwsss_core.proposals import ProposalSettings, finish
from fmwsss_core.records import SUPERPIXELS, detections_from_row, superpixels_row
from jobs.config import RunConfig
from jobs.decode import decode_shard
from jobs.stage import begin_stage, run_sharded, upstream

STAGE = "superpixels"


def run(config: RunConfig, run: Run) -> Receipt:
    """Proposes superpixels for the run's images: decode | SAM | suppress, clean, encode and write.

    Raises:
        ValueError: the images are not there, the settings make no sense, or every image failed.
    """
    (images,) = upstream(run, STAGE, ["images"])
    settings = ProposalSettings(**config.propose.model_dump())
    inputs = {"sam": config.sam.model_dump(), "propose": config.propose.model_dump()}
    started = begin_stage(run, STAGE, inputs, [images])
    if started.receipt:
        return started.receipt
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    operators = [
        Operator(decode_shard, {"run": run, "stage": STAGE}, num_cpus=plan.helper_cpus),
        plan.operator(SamReplica, {"spec": config.sam.spec(), "settings": settings, "stage": STAGE}),
        Operator(write_shard, {"run": run, "settings": settings}, num_cpus=plan.helper_cpus),
    ]
    return run_sharded(run, started, images.parts, images.num_rows, operators, config.max_failures)


def write_shard(block: pa.Table, run: Run, settings: ProposalSettings) -> pa.Table:
    """SAM's masks of one shard in, its superpixels and failures written, its counts out."""
    part = block["part"][0].as_py()

    def finished(row: dict[str, Any]) -> dict[str, Any]:
        return superpixels_row(row["image_id"], finish(detections_from_row(row), settings))

    found = map_rows(block, finished, [field for field in SUPERPIXELS if field.name != "image_id"], STAGE)
    rows, failures = split_rows(found, SUPERPIXELS)
    run.write_part(STAGE, part, rows, SUPERPIXELS, failures)
    return summary(part, rows.num_rows, len(failures))


if __name__ == "__main__":
    from jobs.cli import run_step

    run_step("propose")
