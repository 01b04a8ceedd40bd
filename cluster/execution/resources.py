"""How many replicas of a model a cluster carries, and what share of a machine each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.core.errors import InputError


class ResourceError(InputError):
    """What the run file asks for is more than the cluster has; the message gives both figures."""


@dataclass(frozen=True)
class ReplicaPlan:
    """Actors of one operator.

    Attributes:
        num_replicas: size of the pool.
        num_cpus: logical CPUs of each, below one on small machines so that readers and writers find room too.
        num_gpus: GPUs of each, fractions allowed.
        num_threads: torch threads of each; Ray would leave it at one.
    """

    num_replicas: int
    num_cpus: float
    num_gpus: float
    num_threads: int

    @property
    def helper_cpus(self) -> float:
        """Logical CPUs of a task that reads or writes beside the replicas; a small machine must carry both."""
        return min(1.0, self.num_cpus)

    def operator(self, replica: type, arguments: dict[str, Any]) -> Operator:
        """The operator whose actors are this many of `replica`; they take `num_threads` beside `arguments`.

        Args:
            replica: a class whose constructor takes `num_threads`.
            arguments: of its constructor, small and picklable.

        Returns:
            An operator for `map_shards`.
        """
        return Operator(
            replica, {**arguments, "num_threads": self.num_threads}, self.num_cpus, self.num_gpus, self.num_replicas
        )


def plan_replicas(
    num_replicas: int | None, gpus_per_replica: float | None, num_threads: int, max_gpus: int | None = None
) -> ReplicaPlan:
    """One replica per GPU (or per share of one); without a GPU, one replica per `num_threads` cores.

    Args:
        num_replicas: the run file's wish; None means as many as fit.
        gpus_per_replica: the run file's wish; None means a whole GPU where there are any, none otherwise.
        num_threads: torch threads of each. Given, not derived from the machine: sums on a CPU depend on it in the last
            bit, and a run must give the same bytes on any number of nodes.
        max_gpus: GPUs that the cluster's autoscaler may bring. As many replicas are asked for at once; they start as
            machines come, and the first of them need not wait for the last.

    Raises:
        ResourceError: GPUs are asked for and the cluster has too few: Ray would wait for ever in silence.
    """
    have = ray.cluster_resources()
    gpus, cpus = max(have.get("GPU", 0.0), max_gpus or 0.0), have.get("CPU", 0.0)
    share = gpus_per_replica if gpus_per_replica is not None else (1.0 if gpus else 0.0)
    if share > 0:
        fitting = int(gpus / share + 1e-6)
        wanted = num_replicas or fitting
        if wanted > fitting or not fitting:
            raise ResourceError(
                f"{wanted or 1} replicas with {share:g} GPU each were asked for; the cluster has {gpus:g} GPU. Lower "
                "cluster.num_replicas or cluster.gpus_per_replica, or say in cluster.max_gpus what may be added"
            )
        return ReplicaPlan(wanted, 0.5, share, num_threads)
    wanted = num_replicas or max(1, int(cpus) // num_threads)
    # Half of the CPUs for the actors at the most: the operators around them need the other half.
    return ReplicaPlan(wanted, min(1.0, cpus / (2 * wanted)), 0.0, num_threads)
