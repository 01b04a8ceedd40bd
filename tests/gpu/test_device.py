"""Which device a process takes, and what the tests of this folder need to start on a machine with a card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fmwsss.cluster.models.device import pick_device
from tests.support.card import Card

ROOT = Path(__file__).parents[2]
# What a machine with a card need not have; a module that is None can't be imported.
ABSENT = ("ray", "s3fs", "efficientnet_lite_pytorch", "mobile_sam", "pydantic", "beartype")


def test_a_process_with_a_gpu_takes_it(card: Card):
    assert pick_device() == "cuda"


def test_a_process_from_which_gpus_are_hidden_takes_none():
    code = "from fmwsss.cluster.models.device import pick_device; raise SystemExit(pick_device() != 'cpu')"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


def test_these_tests_start_without_ray_and_s3():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"
    code = f"{blocked}; import pytest; raise SystemExit(pytest.main(['--collect-only', '-q', 'tests/gpu']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test_memory.py" in result.stdout
