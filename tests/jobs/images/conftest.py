"""One Ray for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="package")
def cluster(s3_url: str) -> Iterator[None]:
    # After the S3 server: the workers take its address from the environment.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
