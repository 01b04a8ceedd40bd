"""Memory does not grow with the data set: 20,000 images through all that has parts, with less memory than they need."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 20_000
# What each process may hold beside the object store, libraries included.
HEAP_BYTES = 1 << 30


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_images_under_a_fixed_object_store_and_heap(tmp_path: Path) -> None:
    program = (
        "import json, pathlib, sys; from benchmarks.scaling import memory; "
        f"print(json.dumps(memory(pathlib.Path(sys.argv[1]), {NUM_IMAGES})))"
    )
    # The limit is of each process, and every process of Ray inherits it.
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (HEAP_BYTES, HEAP_BYTES)),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["images"] == NUM_IMAGES
    first, *_, last = measured["rows"]
    assert last["passed_mib"] * 2**20 > 4 * measured["object_store_bytes"]
    assert last["spilled_mib"] == 0
    # Of the driver, whose tables could grow with the rows: after the first stage it holds what it will hold.
    assert last["driver_mib"] - first["driver_mib"] < 50
