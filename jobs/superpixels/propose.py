"""Stage `superpixels`: SAM's masks for every image, once per image and SAM; with `proposals`, once for all runs."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.rows import map_rows, split_rows, summary
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.replicas.sam_masks import SamReplica
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.schemas import SUPERPIXELS, detections_from_row, superpixels_row
from fmwsss.core.superpixels.postprocess import finish
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, Judged, ShardCost, Stage
from fmwsss.jobs.images import kept_superpixels
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.superpixels.shared_cache import SharedSuperpixels, sam_sha256

STAGE = "superpixels"


def superpixels_stage(config: RunConfig, home: str = "") -> Stage:
    """The stage that proposes superpixels: decode | SAM | suppress, clean, encode and write.

    Args:
        config: the run file.
        home: folder of the run in the run whose images they are of, with a slash at its end; empty for the run itself.
    """
    return Stage(
        name=f"{home}{STAGE}",
        unit="images",
        reads=(f"{home}images",),
        settings=lambda: {"sam": config.sam.model_dump(), "propose": config.propose.model_dump()},
        operators=lambda run: _operators(config, run.within(f"{home}{STAGE}")[0]),
        cost=ShardCost(SamReplica, requests_per_part=6) if not home else None,
        of_pixels=True,
        judged=(Judged("superpixels named by ground truth", "named"),) if not home else (),
    )


DECLARATIONS = (
    Declaration(
        STAGE,
        "Propose superpixels with SAM.",
        lambda config: [superpixels_stage(config)],
        old_names=("propose",),
    ),
)


def _operators(config: RunConfig, run: Run) -> list[Operator]:
    settings = ProposalSettings(**config.propose.model_dump())
    shared = None
    if config.proposals is not None:
        # On a worker: the driver may have neither memory nor a GPU for a network.
        sha256 = ray.get(ray.remote(sam_sha256).options(num_cpus=0.5).remote(config.sam.spec()))
        shared = SharedSuperpixels.of(config.proposals, sha256, settings)
    cluster = config.cluster
    plan = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    # Looked up once here: most runs have none, and need not read which image of a part has which bytes.
    may_be_known = shared is not None or kept_superpixels.are_there(run)
    known = {"shared": shared, "may_be_known": may_be_known}
    return [
        Operator(decode_unknown, {"run": run, **known}, num_cpus=plan.helper_cpus),
        plan.operator(SamReplica, {"spec": config.sam.spec(), "settings": settings, "stage": STAGE}),
        Operator(write_shard, {"run": run, "settings": settings, **known}, num_cpus=plan.helper_cpus),
    ]


def decode_unknown(block: pa.Table, run: Run, shared: SharedSuperpixels | None, may_be_known: bool = True) -> pa.Table:
    """A block that names a part of `images/` in; out its decoded images, without those whose superpixels are known.

    Args:
        block: of one row.
        run: the run folder.
        shared: where superpixels of other runs are; None for nowhere.
        may_be_known: whether there are superpixels of any image, shared or kept.

    Returns:
        A table of `carried(DECODED_PAYLOAD)`.
    """
    if not may_be_known:
        return decode_shard(block, run, STAGE)
    sha256 = set(_image_sha256(run, block["part"][0].as_py()).values())
    known = set(kept_superpixels.kept(run, sha256))
    if shared is not None:
        known |= shared.known(sha256 - known)
    return decode_shard(block, run, STAGE, skip_sha256=known)


def write_shard(
    block: pa.Table,
    run: Run,
    settings: ProposalSettings,
    shared: SharedSuperpixels | None = None,
    may_be_known: bool = True,
) -> pa.Table:
    """SAM's masks of one shard in, its superpixels and failures written, its counts out.

    Args:
        block: a table of `carried(...)` with SAM's masks.
        run: the run folder.
        settings: of the clean-up and the occupation filter.
        shared: where superpixels are kept for other runs; None for nowhere.
        may_be_known: as `decode_unknown` was told.

    Returns:
        One row of SUMMARY.
    """
    part = block["part"][0].as_py()

    def finished(row: dict[str, Any]) -> dict[str, Any]:
        return superpixels_row(row["image_id"], finish(detections_from_row(row), settings))

    found = map_rows(block, finished, [field for field in SUPERPIXELS if field.name != "image_id"], STAGE)
    rows, failures = split_rows(found, SUPERPIXELS)
    if may_be_known:
        rows = _with_known(run, part, rows, {failure["image_id"] for failure in failures}, shared)
    return summary(part, run.write_part(STAGE, part, rows, SUPERPIXELS, failures), len(failures))


def _with_known(run: Run, part: str, rows: pa.Table, failed: set[str], shared: SharedSuperpixels | None) -> pa.Table:
    """The rows of a part with those that were kept or shared, in the order of its images; new ones are shared too."""
    sha256 = _image_sha256(run, part)
    new = {row["image_id"]: row for row in rows.to_pylist()}
    if shared is not None:
        shared.add({sha256[image_id]: row for image_id, row in new.items()})
    others = [image_id for image_id in sha256 if image_id not in new and image_id not in failed]
    if not others:
        return rows
    old = kept_superpixels.kept(run, [sha256[image_id] for image_id in others])
    if shared is not None:
        old |= shared.read(sha256[image_id] for image_id in others if sha256[image_id] not in old)
    by_id = new | {image_id: {**old[sha256[image_id]], "image_id": image_id} for image_id in others}
    return pa.Table.from_pylist([by_id[image_id] for image_id in sha256 if image_id in by_id], schema=SUPERPIXELS)


def _image_sha256(run: Run, part: str) -> dict[str, str]:
    """By image id, in the order of the part."""
    table = run.read_part("images", part, columns=["image_id", "sha256"])
    return dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
