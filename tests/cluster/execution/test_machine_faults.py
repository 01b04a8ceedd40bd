"""What is a machine's fault costs no image, and an image that kills its workers costs itself alone."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray import cloudpickle

from fmwsss.cluster.execution import subprocess_decoder
from fmwsss.cluster.execution.machine_faults import MachineFault, kind_of
from fmwsss.cluster.execution.rows import map_rows, split_rows, start_rows
from fmwsss.cluster.execution.shard_pipeline import Operator, ShardError, map_shards
from fmwsss.cluster.execution.subprocess_decoder import Decoder
from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.images import ImageError
from tests.support.image_files import png

# The workers can't import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
PAYLOAD = [pa.field("value", pa.int64())]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def begin(block: pa.Table) -> pa.Table:
    part = block["part"][0].as_py()
    return start_rows(part, [{"image_id": f"{part}-{name}", "value": 1} for name in "abc"], PAYLOAD)


class Model:
    """Does to the process, or raises, what it is told for some images."""

    def __init__(self, what: str, image: str, once: str = "") -> None:
        self.what, self.image, self.once = what, image, once

    def __call__(self, block: pa.Table) -> pa.Table:
        return map_rows(block, self._one, PAYLOAD, "stage")

    def _one(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.image in row["image_id"] and not (self.once and os.path.exists(self.once)):
            if self.once:
                Path(self.once).touch()
            if self.what == "exit":
                os._exit(1)
            raise RuntimeError(self.what)
        return {"value": 10}


def end(block: pa.Table) -> pa.Table:
    rows, failures = split_rows(block, pa.schema([("image_id", pa.string()), *PAYLOAD]))
    told = "; ".join(f"{failure['image_id']} {failure['error_type']} {failure['message']}" for failure in failures)
    return pa.table({"part": block["part"][:1], "rows": [rows.num_rows], "failed": [told]})


def run(model: dict[str, str]) -> dict[str, dict[str, Any]]:
    done: list[dict[str, Any]] = []
    operators = [Operator(begin, num_cpus=0.5), Operator(Model, model, num_cpus=0.5), Operator(end, num_cpus=0.5)]
    map_shards([{"part": f"part-{index}"} for index in range(3)], operators, done.append, stage="stage")
    return {row["part"]: row for row in done}


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "what", ["exit", "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"]
)
def test_an_image_that_kills_its_workers_is_a_row_and_its_neighbours_come_through(what: str) -> None:
    done = run({"what": what, "image": "part-1-b"})
    assert {part: row["rows"] for part, row in done.items()} == {"part-0": 3, "part-1": 2, "part-2": 3}
    assert done["part-1"]["failed"].startswith("part-1-b WorkerDied every process that had this image died (")
    assert (socket.gethostname() in done["part-1"]["failed"]) == (what != "exit")
    assert not done["part-0"]["failed"]


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cluster")
def test_a_broken_gpu_is_told_by_the_name_of_its_machine_and_no_image_is_bad() -> None:
    with pytest.raises(ShardError, match=rf"RuntimeError on {socket.gethostname()}: CUDA error: an illegal") as caught:
        run({"what": "CUDA error: an illegal memory access was encountered", "image": "part-"})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cluster")
def test_a_process_that_broke_once_is_replaced_and_costs_nothing(tmp_path: Path) -> None:
    model = {"what": "CUDA error: unspecified launch failure", "image": "part-1-b", "once": str(tmp_path / "broken")}
    done = run(model)
    assert (tmp_path / "broken").exists()
    assert {part: (row["rows"], row["failed"]) for part, row in done.items()} == dict.fromkeys(done, (3, ""))
    assert len(done) == 3


def test_whose_fault_an_error_is() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), _too_much()):
        assert kind_of(error) == "memory"
    for error in (
        RuntimeError("CUDA error: device-side assert triggered"), ImportError("libGL.so.1"), MachineFault("x"),
        OSError(errno.ENOSPC, "No space left on device"), OSError("libcudart.so: cannot open shared object file"),
    ):  # fmt: skip
        assert kind_of(error) == "machine"
    for error in (ImageError("the image is cut off"), ValueError("x"), RuntimeError("shape mismatch"), KeyError("a")):
        assert kind_of(error) is None


def _too_much() -> BaseException:
    """What PyTorch raises on this machine for more memory than there can be."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    return caught.value


def test_a_batch_is_halved_where_a_cpu_has_too_little_memory() -> None:
    def double(items: list[int]) -> list[int]:
        if len(items) > 2:
            raise _too_much()
        return [2 * item for item in items]

    fitting = FittingBatch(8)
    assert [value for part in fitting.run(double, list(range(8))) for value in part] == [2 * i for i in range(8)]
    assert fitting.size == 2


def test_a_decoder_that_does_not_start_is_no_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'libz.so.1: cannot open shared object file' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(subprocess_decoder.sys, "executable", str(broken))
    with pytest.raises(MachineFault, match=r"does not start \(exit code 127\): libz\.so\.1: cannot open"):
        Decoder().size(png(np.zeros((20, 30, 3), np.uint8)), 10**6)
    monkeypatch.setattr(subprocess_decoder.sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(MachineFault, match=r"does not start: .*No such file"):
        Decoder().size(png(np.zeros((20, 30, 3), np.uint8)), 10**6)
