"""`fmwsss doctor`: what this machine, or the cluster, has and lacks, in words."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import ray

from fmwsss.cluster.execution.session import SessionError, session, token_file
from fmwsss.cluster.models.weights import weights_cache
from fmwsss.jobs.stages import VERSIONS_OF

GIB = 2**30
MIN_MEMORY_BYTES = 6 * GIB
MIN_SHARED_BYTES = 1 * GIB
MIN_FREE_BYTES = 10 * GIB
MIN_OPEN_FILES = 4096
AWS_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL")


def run(address: str | None) -> bool:
    """Prints what is there and what is not; whether everything that a run needs is there.

    Args:
        address: a cluster to look at; None means the one around this process, else this machine.
    """
    is_well = True
    for kind, line in _findings(address):
        print(f"{kind:6} {line}", flush=True)
        is_well = is_well and kind != "LACKS"
    return is_well


def _findings(address: str | None) -> Iterator[tuple[str, str]]:
    """("has", "note" or "LACKS", a sentence)."""
    yield from _packages()
    yield from _machine()
    yield from _storage()
    yield from _token()
    yield from _cluster(address)


def _packages() -> Iterator[tuple[str, str]]:
    python = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield "has" if fits else "LACKS", f"Python {python}" + ("" if fits else "; 3.10 to 3.12 is needed")
    found, missing = [], []
    for name in VERSIONS_OF:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield "has", ", ".join(found)
    if missing:
        yield "LACKS", f"packages: {', '.join(missing)}; `pip install` this one again"
    if importlib.util.find_spec("detectron2") is None:
        yield "note", "detectron2 is not installed; only a run that chooses it as an engine needs it"


def _machine() -> Iterator[tuple[str, str]]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= MIN_MEMORY_BYTES
    yield (
        "has" if enough else "LACKS",
        f"{cpus} CPUs, {memory / GIB:.1f} GiB of memory"
        + ("" if enough else f"; a run needs {MIN_MEMORY_BYTES // GIB} GiB and more"),
    )
    shared = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    if shared >= MIN_SHARED_BYTES:
        yield "has", f"{shared / GIB:.1f} GiB of shared memory, for Ray's object store"
    else:
        yield "note", f"{shared / GIB:.1f} GiB of shared memory; Ray will use a disk (in a container: --shm-size)"
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= files < MIN_OPEN_FILES:
        yield "note", f"a limit of {files} open files; large clusters need more (`ulimit -n 65536`)"
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield "has", f"GPU {about.name} with {about.total_memory / GIB:.0f} GiB"
    else:
        yield "note", "no GPU that torch can use here; everything runs on CPUs, SAM slowly"


def _storage() -> Iterator[tuple[str, str]]:
    for name, place in (("this folder", Path.cwd()), ("Ray's temporary folder", Path("/tmp"))):
        free = shutil.disk_usage(place).free
        kind = "has" if free >= MIN_FREE_BYTES else "note"
        yield kind, f"{free / GIB:.1f} GiB free in {name} ({place})"
    cache = weights_cache()
    known = len(list(cache.glob("*"))) if cache.exists() else 0
    yield "has", f"{known} files of weights in {cache}"
    names = [name for name in AWS_NAMES if os.environ.get(name)]
    profile = any(Path(os.path.expanduser(f"~/.aws/{name}")).exists() for name in ("credentials", "config"))
    if names or profile:
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        where = f"; the endpoint is {endpoint.hostname}:{endpoint.port}" if endpoint.hostname else ""
        told = ", ".join([*names, *(["~/.aws"] if profile else [])])
        yield "has", f"settings for s3:// ({told}){where}; `fmwsss plan` tries them"
    else:
        yield "note", "no AWS_* variables and no ~/.aws; s3:// folders need them (or a role of the machine)"


def _token() -> Iterator[tuple[str, str]]:
    path = token_file()
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        yield "LACKS", "Ray's token authentication: RAY_AUTH_MODE=disabled lets everyone on the network run code here"
    elif not path.exists():
        yield "note", f"no token of a cluster in {path}; Ray writes one when it starts here"
    elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield "LACKS", f"a private token: others can read {path}; `chmod 600` it"
    else:
        yield "has", f"a private token for Ray ({path})"


def _cluster(address: str | None) -> Iterator[tuple[str, str]]:
    try:
        with session(address):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            have = ray.cluster_resources()
            cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
            size = {key: have.get(key, 0) / GIB for key in ("memory", "object_store_memory")}
            yield (
                "has",
                (
                    f"Ray {ray.__version__}: {len(nodes)} nodes with {cpus:g} CPUs, {gpus:g} GPUs,"
                    f" {size['memory']:.1f} GiB of memory, {size['object_store_memory']:.1f} GiB of object store"
                ),
            )
            for node in nodes if len(nodes) > 1 else ():
                own = {key: value for key, value in node["Resources"].items() if key in ("CPU", "GPU")}
                yield "has", f"node {node['NodeManagerAddress']}: " + ", ".join(f"{own[key]:g} {key}" for key in own)
    except SessionError as error:
        yield "LACKS", f"Ray: {' '.join(str(error).split())}"
