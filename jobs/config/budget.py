"""What machines cost, and what a run may spend."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fmwsss.jobs.config.base import Section

Price = Annotated[float, Field(ge=0)]


class PricesSection(Section):
    """What an hour of the cluster's machines costs; `plan`, `status` and `max_cost` count with it.

    Look up the day's own prices. As an example, in us-east-1 and on demand: `currency: USD`,
    `gpu_hour: {A10G: 1.212}` (a g5.2xlarge), `machine_hour: {head: 0.384}` (an m6i.2xlarge), as
    AWS's list gives them (aws.amazon.com/ec2/pricing/on-demand); spot prices change by the hour
    (`aws ec2 describe-spot-price-history`). Machines without a price here cost nothing.
    """

    currency: str = ""
    """For the reader, such as USD."""
    gpu_hour: dict[str, Price] = {}
    """Of one GPU with its share of the machine around it, by Ray's name of the GPU: `A10G`, `L4`, `H100`."""
    machine_hour: dict[str, Price] = {}
    """Of a whole machine, by its group in the cluster's file, else `cpu`, without a GPU. Goes before `gpu_hour`."""
