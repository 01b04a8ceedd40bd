"""Whether all machines of a cluster see what a run file names by a path of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmwsss.core.errors import InputError

LOOK_S = 60.0


def demand_shared(paths: Mapping[str, str]) -> None:
    """Looks for local paths on every machine of the cluster, before any work is sent there.

    Args:
        paths: by the key of the run file that names them; those that are there on this machine.

    Raises:
        InputError: a machine does not see one of them.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    own = ray.get_runtime_context().get_node_id()
    asked = {
        _missing.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            list(paths.values())
        ): address
        for node, address in nodes.items()
        if node != own
    }
    # A machine that gives no answer goes, or is too busy: what it does not see is told by its first shard.
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S) if paths and asked else ([], [])
    for reference in answered:
        try:
            missing = ray.get(reference)
        except RayError:
            continue
        for key, path in paths.items():
            if path in missing:
                raise InputError(
                    f"{key}: {path} is a path of this machine, and {asked[reference]} of the cluster does not see it; "
                    "give a folder on a disk that all machines share, or an s3://, gs:// or az:// URL"
                )


@ray.remote(max_retries=0)
def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
