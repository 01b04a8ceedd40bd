"""`fmwsss plan RUN_FILE`: whether a run can succeed, and what it will take, before it is begun.

A few images go through the real stages, in a folder inside the run's own that is deleted afterwards, and a step of each
kind of learning is taken; everything that is printed about time and bytes was measured so, on the machines that are
there now.
"""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from fmwsss.cluster.execution.resources import plan_replicas
from fmwsss.cluster.execution.session import session
from fmwsss.cluster.execution.train_job import plan_training
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Receipt, Run
from fmwsss.cluster.storage.spending import Amount, spent_by
from fmwsss.core.errors import FmwsssError
from fmwsss.jobs.commands import plan_checks as checks
from fmwsss.jobs.commands.plan_prices import demand_budget, tariff_of, told_cost, told_hours
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import ShardCost, Stage, StepCost
from fmwsss.jobs.images.readers.base import Source
from fmwsss.jobs.stages import begin_stage, finish_stage, make_stage
from fmwsss.jobs.steps import budget_of, prices_of, stages_of

MIN_PART_MIB, MAX_PART_MIB = 64, 256  # what object stores and readers like, where parts are many
MANY_PARTS = 1000
LINE_WIDTH = 140  # of a log or a pipe


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take.

    Attributes:
        stage: its folder in the run.
        hours: wall time.
        gpu_hours: of all replicas together.
        num_bytes: that it writes.
        num_requests: PUT, GET, LIST and DELETE.
        part_mib: size of one of its parts; None where it has no parts.
        part_minutes: that one part takes: about so much work of each replica is done again when its machine is lost.
    """

    stage: str
    hours: float
    gpu_hours: float
    num_bytes: float
    num_requests: float
    part_mib: float | None
    part_minutes: float | None


def run(config: RunConfig, num_images: int) -> bool:
    """Checks and measures; prints what it finds, and returns whether the run can succeed.

    Args:
        config: the run file.
        num_images: how many images to send through the stages.
    """
    problems: list[str] = []

    def attempt(name: str, look: Callable[[], str]) -> bool:
        try:
            print(f"ok   {name}: {look()}", flush=True)
        except FmwsssError as error:
            line = " ".join(str(error).split())
            problems.append(line)
            print(f"NO   {name}: {line}", flush=True)
            return False
        return True

    vocabulary = config.resolve_vocabulary()
    sources: list[Source] = []
    attempt("run folder", lambda: checks.folder(Folder(config.run)))
    for role, spec in (("clip", config.clip.spec()), ("sam", config.sam.spec())):
        attempt(role, lambda role=role, spec=spec: checks.model(role, spec))
    if config.prompts is not None:
        attempt("prompts", lambda: checks.prompts(config, vocabulary))
    if attempt("images", lambda: checks.images(config, sources)) and attempt(
        "labels", lambda: checks.labels(config, vocabulary, sources)
    ):
        attempt("pixels", lambda: checks.pixels(config, vocabulary, sources))
        num_usable = sum(not source.problem for source in sources)
        for stage in stages_of(config):
            if stage.check:
                attempt(stage.name, lambda check=stage.check: check(num_usable))
    if config.segmenter is not None:
        attempt("segmenter", lambda: checks.segmenter(config))
    if not problems:
        with session(config.cluster.address, config.cluster.num_cpus):
            attempt("machines", lambda: _describe_machines(config))
            if not problems:
                plans = _measure(config, len(sources), num_images)
                attempt("space", lambda: checks.space(config, sum(plan.num_bytes for plan in plans)))
                total = _show(config, plans, len(sources), ray.nodes())
                if config.max_gpu_hours is not None or config.max_cost is not None:
                    spent = spent_by(Folder(config.run))
                    attempt("budget", lambda: demand_budget(total, spent, budget_of(config), config.prices.currency))
    for problem in problems:
        print(f"this run can't succeed: {problem}")
    return not problems


def _describe_machines(config: RunConfig) -> str:
    cluster = config.cluster
    replicas = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    have, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    return (
        f"{len(nodes)} nodes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs, "
        f"{have.get('object_store_memory', 0) / 2**30:.1f} GiB of object store; "
        f"{replicas.num_replicas} replicas with {replicas.num_gpus:g} GPU each"
    )


def _measure(config: RunConfig, num_listed: int, num_images: int) -> list[StagePlan]:
    """Sends a few images through the stages, one to a shard, and scales what that took."""
    parent = Folder(config.run)
    is_new = parent.is_local and not Path(parent.url).exists()
    trial = Run(parent.child(f"_plan/{uuid.uuid4().hex}"))
    print(f"     {num_images} images go through the stages, to be measured ...", flush=True)
    small = _small(config, num_images, trial.folder.url)
    try:
        receipts: dict[str, Receipt] = {}
        for stage in stages_of(small):
            if isinstance(stage.cost, ShardCost):
                receipts[stage.name] = make_stage(stage, trial, max_failures=1.0)
            elif stage.cost and stage.cost.stand_in:
                receipts[stage.name] = _stand_in(stage, stage.cost, trial)
        events = trial.timeline()
        plans: dict[str, StagePlan] = {}
        for stage in stages_of(config):
            if isinstance(stage.cost, ShardCost):
                own, folder = receipts[stage.name], trial.folder.child(stage.name)
                sizes = [file.bytes for file in own.files]
                png_bytes = sum(len(folder.read(name)) for name in folder.list("png/")) / max(1, len(sizes))
                seconds = _seconds_an_image([event for event in events if event["cat"] == stage.name])
                plans[stage.name] = _plan_stage(
                    config, stage, stage.cost, num_listed, seconds, statistics.mean(sizes), png_bytes
                )
            elif stage.cost and (num_steps := stage.cost.num_steps(num_listed)):
                if stage.cost.renewed:
                    renewed, name, every = stage.cost.renewed
                    plans[name] = _plan_renewals(name, plans[renewed], -(-num_steps // every))
                plans[stage.name] = _plan_steps(config, stage, stage.cost, num_steps, num_listed)
        return list(plans.values())
    finally:
        trial.folder.delete_all()
        checks.remove_empty(parent, is_new)


def _small(config: RunConfig, num_images: int, url: str) -> RunConfig:
    data = config.dataset
    limit = "num_images" if data.kind == "toy" else "max_images"
    num_images = min(num_images, getattr(data, limit) or num_images)
    changes = {
        "run": url,
        "shard_rows": 1,
        "max_failures": 1.0,
        "dataset": data.model_copy(update={limit: num_images}),
        "segmenter": None,
    }
    if config.cluster.max_gpus:
        # One machine tells what an image takes: sixteen need not come for four images.
        changes["cluster"] = config.cluster.model_copy(update={"num_replicas": 1})
    return config.model_copy(update=changes)


def _stand_in(stage: Stage, cost: StepCost, run: Run) -> Receipt:
    """What has learned nothing yet: the stages after it take as long with it, and learning is measured by its step."""
    started = begin_stage(run, stage.name, {}, [])
    folder = run.folder.child(stage.name)
    work: Any = ray.remote(_in_worker).options(num_cpus=0.5)
    ray.get(work.remote(cost.stand_in, *cost.arguments, folder))
    return finish_stage(run, started, parts=[], num_rows=0, num_failures=0)


def _in_worker(name: str, *arguments: Any) -> Any:
    """A function of `fmwsss.jobs.commands.plan_timing`, by its name: it needs torch, which a driver starts without."""
    from fmwsss.jobs.commands import plan_timing as measure

    return getattr(measure, name)(*arguments)


def _seconds_an_image(events: list[dict[str, Any]]) -> dict[str, float]:
    """Median busy time of each operator; the first image of a process warms it up and only counts if it is alone."""
    times: dict[str, dict[Any, list[tuple[int, float]]]] = {}
    for event in events:
        process = (event["pid"], event["tid"])
        times.setdefault(event["name"], {}).setdefault(process, []).append((event["ts"], event["dur"] / 1e6))
    return {
        name: statistics.median(
            seconds for each in processes.values() for _, seconds in (sorted(each)[1:] if len(each) > 1 else each)
        )
        for name, processes in times.items()
    }


def _plan_stage(
    config: RunConfig,
    stage: Stage,
    cost: ShardCost,
    num_images: int,
    seconds: Mapping[str, float],
    row_bytes: float,
    png_bytes: float,
) -> StagePlan:
    cluster = config.cluster
    replicas = plan_replicas(cluster.num_replicas, cluster.gpus_per_replica, cluster.num_threads, cluster.max_gpus)
    replica = seconds.get(cost.replica.__name__, 0.0) if cost.replica else 0.0
    helpers = sum(seconds.values()) - replica
    cpus = ray.cluster_resources().get("CPU", 1.0)
    if replicas.num_gpus:
        # CPUs work ahead of the GPUs: what is slower decides.
        wall = num_images * max(replica / replicas.num_replicas, helpers / cpus)
    else:
        wall = num_images * max(replica / replicas.num_replicas, (replica * replicas.num_threads + helpers) / cpus)
    shards = -(-num_images // config.shard_rows)
    per_image = cost.requests_per_image + (1 if png_bytes else 0)
    return StagePlan(
        stage=stage.name,
        hours=wall / 3600,
        gpu_hours=wall / 3600 * replicas.num_replicas * replicas.num_gpus if replica else 0.0,
        num_bytes=num_images * (row_bytes + png_bytes),
        num_requests=num_images * per_image + shards * cost.requests_per_part,
        part_mib=config.shard_rows * row_bytes / 2**20,
        part_minutes=config.shard_rows * (replica + helpers) / 60,
    )


def _plan_renewals(name: str, renewed: StagePlan, times: int) -> StagePlan:
    """A stage that is made anew so many times on the way; one set of its rows is there at a time."""
    return replace(
        renewed, stage=name, hours=times * renewed.hours, gpu_hours=times * renewed.gpu_hours,
        num_requests=times * renewed.num_requests,
    )  # fmt: skip


def _plan_steps(config: RunConfig, stage: Stage, cost: StepCost, num_steps: int, num_images: int) -> StagePlan:
    """Steps of training, one of which is measured where a worker would do it."""
    workers = plan_training(config.cluster.train_workers, config.cluster.max_gpus)
    gpus = 1.0 if workers.use_gpu else 0.0
    share = -(-cost.batch_size // workers.most_workers)
    work: Any = ray.remote(_in_worker).options(num_cpus=0.5, num_gpus=gpus)
    step_s: float = ray.get(work.remote(cost.step, *cost.arguments, share, config.cluster.num_threads))
    hours = num_steps * step_s / 3600
    checkpoints = 3600 * hours / max(config.cluster.checkpoint_every_s, step_s)
    epochs = max(1.0, num_steps * cost.batch_size / num_images)
    reads = 5 * -(-num_images // config.shard_rows) * epochs
    return StagePlan(stage.name, hours, hours * gpus * workers.most_workers, 0.0, checkpoints + reads, None, None)


def _show(config: RunConfig, stages: list[StagePlan], num_images: int, nodes: list[dict[str, Any]]) -> Amount:
    """Prints the table, and returns what the whole run takes; `nodes` as Ray tells them."""
    prices = prices_of(config)
    tariff = tariff_of(nodes, prices, config.cluster.max_gpus)
    money = prices.currency or "price"
    table = Table("stage", title="what it will take here, scaled from what was measured")
    for head in (
        "time",
        "GPU hours",
        *([money] if prices.are_known else []),
        "GiB",
        "requests",
        "MiB a part",
        "a part",
    ):
        table.add_column(head, justify="right")

    def add(name: str, of: Amount, gpu_hours: float, num_bytes: float, requests: float, part: list[str]) -> None:
        cost = [told_cost(of.cost)] if prices.are_known else []
        row = [told_hours(of.hours), _figure(gpu_hours), *cost, _figure(num_bytes / 2**30), f"{requests:,.0f}", *part]
        table.add_row(name, *row)

    total = Amount()
    for stage in stages:
        paid = tariff.pay(stage.hours, stage.gpu_hours)
        total += paid
        size = f"{stage.part_mib:.2f}" if stage.part_mib is not None else ""
        took = told_hours(stage.part_minutes / 60) if stage.part_minutes is not None else ""
        add(stage.stage, paid, stage.gpu_hours, stage.num_bytes, stage.num_requests, [size, took])
    table.add_section()
    gpu_hours, num_bytes = (sum(getattr(stage, key) for stage in stages) for key in ("gpu_hours", "num_bytes"))
    requests = sum(stage.num_requests for stage in stages)
    for name, share in (("all", 1.0), ("1,000 images", 1000 / num_images)):
        paid = Amount(share * total.gpu_hours, share * total.cost, share * total.hours)
        add(name, paid, share * gpu_hours, share * num_bytes, share * requests, ["", ""])
    Console(width=None if Console().is_terminal else LINE_WIDTH).print(table)
    if prices.are_known and tariff.gpu_hour is None and gpu_hours:
        print("     of GPUs without a price in `prices` the money is not counted")
    if not prices.are_known:
        print("     `prices` in the run file (docs/run_file.md has an example) adds what it costs")
    shards = -(-num_images // config.shard_rows)
    print(f"     {num_images} images in {shards} shards of {config.shard_rows} (`shard_rows`), a part each")
    largest = max(stage.part_mib or 0 for stage in stages)
    if shards > MANY_PARTS and largest < MIN_PART_MIB:
        fitting = round(config.shard_rows * MIN_PART_MIB / largest)
        slowest = max(stage.part_minutes or 0 for stage in stages) * fitting / config.shard_rows
        print(f"     many small parts: shard_rows {fitting} would make the largest {MIN_PART_MIB} MiB; "
              f"a lost machine would then cost about {slowest:.0f} min a replica")  # fmt: skip
    if largest > MAX_PART_MIB:
        print(f"     large parts: a shard is the unit of what is lost when a machine dies; {largest:.0f} MiB is much")
    return total


def _figure(value: float) -> str:
    return f"{value:.3g}" if value else "0"
