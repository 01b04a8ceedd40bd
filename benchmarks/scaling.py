"""How the cluster's rooms scale, with models that take time or none: `python -m benchmarks.scaling`.

1. *Efficiency*: 1, 2 and 4 logical nodes with a GPU each (logical too). The operators of `propose` as they are, but for
   a SAM that sleeps. Each node has as many images to do; efficiency is the share of time in which its GPU is busy,
   from the first image's start to the last one's end, against that of one node.
2. *Overhead*: the same operators and those of `ingest` around a SAM that takes no time: wall time an image, photographs
   of 500 x 375 pixels, a local disk, all cores of this machine. With what the method does with SAM's masks (cleaning,
   suppression, occupation filter), and without.
3. *Growth*: rows that are nothing but an id, from 1,000 to 100,000: time a row, time to find out what is done, memory.

`--memory` instead sends 20,000 small images through all of it with a fixed object store and tells what memory it took.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from benchmarks.table import show, write_json
from fmwsss.cluster.execution.ray_compat import object_store_bytes
from fmwsss.cluster.execution.rows import map_rows, start_rows, write_block
from fmwsss.cluster.execution.session import quiet_ray_data
from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
from fmwsss.cluster.replicas.clip_maps import MAPS_PAYLOAD
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.schemas import DETECTIONS_PAYLOAD, IMAGES, detections_row, maps_to_bytes
from fmwsss.core.superpixels.postprocess import Detections, pack_masks
from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.core.vocabularies import custom_vocabulary
from fmwsss.jobs.config.datasets import ImageLimits
from fmwsss.jobs.config.seeds import SeedSection
from fmwsss.jobs.images import ingest
from fmwsss.jobs.images.decode import decode_shard
from fmwsss.jobs.images.readers.base import SOURCES, Source
from fmwsss.jobs.seeds import seed
from fmwsss.jobs.stages import begin_stage, run_sharded
from fmwsss.jobs.superpixels import propose

SHARD_ROWS = 32  # what a run file has if it says nothing
NODE_SHARD_ROWS = 16  # of the first part, whose end waits for the last shard
NUM_MASKS = 12
DEFAULTS = ProposalSettings()
# What the method does with SAM's masks (suppression, cleaning, occupation filter) is its own work, not ours around it.
AS_FOUND = ProposalSettings(min_region_area_px=0, occupation_threshold=None)
OBJECT_STORE_BYTES = 80_000_000  # about the least that Ray takes
IDS = pa.schema([("image_id", pa.string())])


class IdleSam:
    """Takes the place of `SamReplica`: sleeps like a GPU at work, and always finds the same twelve masks."""

    def __init__(self, seconds_per_image: float, height_px: int, width_px: int) -> None:
        self.seconds = seconds_per_image
        masks = np.zeros((NUM_MASKS, width_px, height_px), bool)
        for index, mask in enumerate(masks):
            mask[:, index * height_px // NUM_MASKS : (index + 1) * height_px // NUM_MASKS] = True
        sure = np.full(NUM_MASKS, 0.9, np.float32)
        whole = np.full(NUM_MASKS, 2, np.int8)
        crop = np.zeros(NUM_MASKS, np.int16)
        boxes = ((0, 0, width_px, height_px),)
        self.found = Detections(height_px, width_px, boxes, crop, whole, sure, sure, tuple(pack_masks(masks)))

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decoded images in, what the model's replica would give out."""
        return map_rows(block, self._detect, DETECTIONS_PAYLOAD, "superpixels")

    def _detect(self, row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.seconds)
        return detections_row(self.found)


class IdleClip:
    """Takes the place of `ClipReplica`: always the same maps."""

    def __init__(self, seconds_per_image: float = 0.0) -> None:
        self.seconds = seconds_per_image

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decoded images in, what the model's replica would give out."""
        return map_rows(block, self._map_classes, MAPS_PAYLOAD, "seeds/coarse")

    def _map_classes(self, row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.seconds)
        maps = maps_to_bytes(np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8))
        size = {key: row[key] for key in ("height_px", "width_px")}
        grid = {"grid_height": 8, "grid_width": 8}
        return {**size, "classes": row["classes"][:1], **grid, "cam": maps, "refined_cam": maps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="20,000 small images under a fixed object store")
    parser.add_argument("--overhead", action="store_true", help="the second part alone")
    parser.add_argument("--images", type=int, default=480, help="images a node in the first part; all with --overhead")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")  # as cluster/session.py
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        if arguments.memory:
            measured = memory(Path(name), 20_000)
            show(measured["rows"], f"20,000 images, object store of {OBJECT_STORE_BYTES // 10**6} MB; peaks so far")
            write_json(arguments.json, measured)
            return
        if arguments.overhead:
            with local_ray():
                measured = overheads(Path(name), arguments.images)
            show([measured], f"ms an image beside the model, {arguments.images} images")
            write_json(arguments.json, measured)
            return
        busy = {num_nodes: busy_share(Path(name), num_nodes, arguments.images) for num_nodes in (1, 2, 4)}
        efficiency = {str(num_nodes): round(share / busy[1], 4) for num_nodes, share in busy.items()}
        show([{"nodes": key, "busy": busy[int(key)], "efficiency": value} for key, value in efficiency.items()],
             f"a SAM that sleeps .25 s, {arguments.images} images a node")  # fmt: skip
        with local_ray():
            overhead = overheads(Path(name), 3840)
            rows = [growth(Path(name), num_rows) for num_rows in (1_000, 10_000, 100_000)]
    show([overhead], "ms an image beside the model")
    show(rows, "rows that are only ids")
    result = {
        "efficiency": efficiency,
        "overhead_ms_per_image": overhead["propose"],
        "overhead_ms_per_image_masks_as_found": overhead["propose, masks as found"],
        "rows": rows,
    }
    write_json(arguments.json, result)


@contextlib.contextmanager
def local_ray(object_store_bytes: int | None = None) -> Iterator[None]:
    cpus = max(2, len(os.sched_getaffinity(0)))
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=cpus, object_store_memory=object_store_bytes, **options)
    quiet_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def photograph(height_px: int, width_px: int) -> bytes:
    """Smooth noise: as many bytes as a photograph of this size."""
    pixels = np.random.default_rng(0).integers(0, 256, (height_px // 6, width_px // 6, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def fill_images(run: Run, num_images: int, data: bytes, size: tuple[int, int]) -> list[str]:
    """Writes `images/` of a run as `ingest` would; the names of its parts."""
    parts = []
    for index, first in enumerate(range(0, num_images, NODE_SHARD_ROWS)):
        row = {
            "image": data,
            "height_px": size[0],
            "width_px": size[1],
            "classes": ["cat"],
            "sha256": hashlib.sha256(data).hexdigest(),
            "truth": None,
        }
        names = [f"image-{number:06d}" for number in range(first, min(first + NODE_SHARD_ROWS, num_images))]
        run.write_part("images", part_name(index), [{"image_id": name, **row} for name in names], IMAGES, [])
        parts.append(part_name(index))
    return parts


def propose_chain(
    run: Run, replica: Operator, num_cpus: float, settings: ProposalSettings = DEFAULTS
) -> list[Operator]:
    """The operators of `fmwsss.jobs.superpixels.propose` with another replica."""
    return [
        Operator(decode_shard, {"run": run, "stage": "superpixels"}, num_cpus=num_cpus),
        replica,
        Operator(propose.write_shard, {"run": run, "settings": settings, "may_be_known": False}, num_cpus=num_cpus),
    ]


def busy_share(folder: Path, num_nodes: int, images_per_node: int) -> float:
    """The share of time in which the GPUs are at work, of 1."""
    run = Run(Folder(str(folder / f"nodes-{num_nodes}")))
    size = (375, 500)
    parts = fill_images(run, num_nodes * images_per_node, photograph(*size), size)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=2, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        quiet_ray_data()
        arguments = {"seconds_per_image": 0.25, "height_px": size[0], "width_px": size[1]}
        replica = Operator(IdleSam, arguments, num_cpus=0.5, num_gpus=1, num_replicas=num_nodes)
        events: list[dict[str, Any]] = []
        map_shards(
            [{"part": part} for part in parts],
            propose_chain(run, replica, 0.5),
            lambda row: None,
            stage="superpixels",
            on_timings=events.extend,
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    work = [event for event in events if event["name"] == "IdleSam"]
    span = max(event["ts"] + event["dur"] for event in work) - min(event["ts"] for event in work)
    return sum(event["dur"] for event in work) / (num_nodes * span)


def overheads(folder: Path, num_images: int) -> dict[str, float]:
    """Milliseconds of wall time an image, from the first operator's first start to the last one's end."""
    size = (375, 500)
    data = photograph(*size)
    photos = folder / "photos"
    photos.mkdir()
    sources = []
    for number in range(num_images):
        (photos / f"image-{number:06d}.jpg").write_bytes(data)
        sources.append(Source(f"image-{number:06d}", str(photos / f"image-{number:06d}.jpg"), ("cat",)))
    run = Run(Folder(str(folder / "overhead")))
    took = {"ingest": _ingest_ms(run, sources)}
    parts = [part_name(index) for index in range(-(-num_images // SHARD_ROWS))]
    replica = Operator(IdleSam, {"seconds_per_image": 0, "height_px": size[0], "width_px": size[1]}, num_cpus=0.5)
    for name, settings in {"propose": DEFAULTS, "propose, masks as found": AS_FOUND}.items():
        took[name] = _chain_ms(parts, propose_chain(run, replica, 0.5, settings), num_images)
    return took


def _ingest_ms(run: Run, sources: list[Source]) -> float:
    table = pa.Table.from_pylist([source.__dict__ for source in sources], schema=SOURCES)
    arguments = {
        "run": run,
        "sources": ray.put(table),
        "shard_rows": SHARD_ROWS,
        "vocabulary": custom_vocabulary(["cat"]),
        "limits": ImageLimits(),
        "needs_labels": True,
    }
    parts = [part_name(index) for index in range(-(-len(sources) // SHARD_ROWS))]
    return _chain_ms(parts, [Operator(ingest.ingest_shard, arguments)], len(sources))


def _chain_ms(parts: list[str], operators: list[Operator], num_images: int) -> float:
    events: list[dict[str, Any]] = []
    map_shards([{"part": part} for part in parts], operators, lambda row: None, on_timings=events.extend)
    # A process's first shard imports what it needs, and Ray starts others for seconds; that is paid once, not by the
    # image.
    warm = sorted(events, key=lambda event: event["ts"])[len(events) // 4 :]
    names = {event["args"]["part"] for event in warm if event["name"] == warm[-1]["name"]}
    span = max(event["ts"] + event["dur"] for event in warm) - warm[0]["ts"]
    return span / 1e3 / (num_images * len(names) / len(parts))


def growth(folder: Path, num_rows: int) -> dict[str, Any]:
    """A stage whose rows are only ids, through the ledger and Ray Data; and a second start that finds it all done."""
    run = Run(Folder(str(folder / f"growth-{num_rows}")))
    parts = [part_name(index) for index in range(-(-num_rows // 32))]
    write = Operator(write_block, {"run": run, "stage": "ids", "schema": IDS}, 0.5)
    operators = [Operator(start_ids, {"num_rows": num_rows}, 0.5), write]
    began_s = time.monotonic()
    with peak_memory() as peaks, contextlib.redirect_stdout(open(os.devnull, "w")):
        run_sharded(run, begin_stage(run, "ids", {}, []), parts, num_rows, operators)
    seconds = time.monotonic() - began_s
    run.folder.child("ids").delete(["_receipt.json"])
    began_s = time.monotonic()
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        again = run_sharded(run, begin_stage(run, "ids", {}, []), parts, num_rows, operators)
    assert again.num_rows == num_rows
    return {
        "rows": num_rows,
        "ms_per_row": round(1000 * seconds / num_rows, 3),
        "seconds": round(seconds, 1),
        "seconds_to_resume": round(time.monotonic() - began_s, 2),
        "driver_mib": round(peaks["driver_mib"]),
        "worker_mib": round(peaks["worker_mib"]),
    }


def start_ids(block: pa.Table, num_rows: int) -> pa.Table:
    part = block["part"][0].as_py()
    first = 32 * int(part[5:10])
    return start_rows(part, [{"image_id": f"id-{i:07d}"} for i in range(first, min(first + 32, num_rows))], [])


def memory(folder: Path, num_images: int) -> dict[str, Any]:
    """All stages that have parts, around models that take no time, on 64 x 64 pixels; peaks of memory."""
    size = (64, 64)
    run = Run(Folder(str(folder / "memory")))
    data = photograph(*size)
    photos = folder / "small"
    photos.mkdir()
    sources = []
    for number in range(num_images):
        path = photos / f"image-{number:06d}.jpg"
        path.write_bytes(data)
        sources.append(Source(path.stem, str(path), ("cat",)))
    parts = [part_name(index) for index in range(-(-num_images // SHARD_ROWS))]
    vocabulary = custom_vocabulary(["cat"])
    rows = []
    with local_ray(OBJECT_STORE_BYTES):
        sam = Operator(IdleSam, {"seconds_per_image": 0, "height_px": 64, "width_px": 64}, num_cpus=0.5)
        arguments = {"run": run, "stage": "seeds/coarse"}
        section = SeedSection(maps="cam", alpha=0.6, box_threshold=None)
        write = {"vocabulary": vocabulary, "section": section, "png": True, "confidence": True}
        chains = {
            "superpixels": propose_chain(run, sam, 0.5),
            "seeds/coarse": [
                Operator(decode_shard, arguments, num_cpus=0.5),
                Operator(IdleClip, num_cpus=0.5),
                Operator(seed.write_shard, {**arguments, **write}, num_cpus=0.5),
            ],
        }
        with peak_memory() as peaks:
            took = {"images": _ingest_ms(run, sources)}
            rows.append({"stage": "images", "ms_per_image": took["images"], **peaks, **_object_store()})
            for stage, chain in chains.items():
                took[stage] = _chain_ms(parts, chain, num_images)
                rows.append({"stage": stage, "ms_per_image": took[stage], **peaks, **_object_store()})
        counted = {stage: run.count_rows(stage, run.parts(stage)) for stage in took}
    assert set(counted.values()) == {num_images}, counted
    return {"images": num_images, "object_store_bytes": OBJECT_STORE_BYTES, "rows": rows}


def _object_store() -> dict[str, float]:
    """What went through the object store since Ray started, and what of it had to go to disk."""
    passed_bytes, spilled_bytes = object_store_bytes()
    return {"passed_mib": passed_bytes / 2**20, "spilled_mib": spilled_bytes / 2**20}


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Peaks of private memory in MiB, without the object store: of this process and of the largest of its workers."""
    peaks = {"driver_mib": 0.0, "worker_mib": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            peaks["driver_mib"] = max(peaks["driver_mib"], _private_mib(os.getpid()))
            peaks["worker_mib"] = max([peaks["worker_mib"], *map(_private_mib, _workers())])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _workers() -> list[int]:
    """Processes that the raylet of this process has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parents.get(parent) == os.getpid()]


def _private_mib(pid: int) -> float:
    try:
        fields = (Path("/proc") / str(pid) / "statm").read_text().split()
    except OSError:
        return 0.0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
