"""One Ray for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from fmwsss.cluster.execution.session import session


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    with session(num_cpus=3):
        yield
    assert not ray.is_initialized()
