"""Real photographs through a real SAM and a small real CLIP, given by factories. Skipped where they are absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(900)
def test_voc_photographs_go_through_every_stage(real: Path, tmp_path: Path) -> None:
    pytest.importorskip("mobile_sam")
    pytest.importorskip("efficientnet_lite_pytorch")
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "fmwsss.jobs", "run", str(ROOT / "configs" / "voc12.yaml"), f"run={run}",
        f"dataset.root={real / 'voc'}", "dataset.split=val", "dataset.max_images=4", "shard_rows=2",
        "clip={factory: 'factories:small_clip'}", "sam={factory: 'factories:mobile_sam'}",
        "propose.crop_layers=0", "propose.points_per_side=4", "propose.points_per_batch=4",
        "propose.predicted_iou_threshold=0.7", "propose.stability_threshold=0.8",
        "learn.classification.epochs=2", "learn.segmentation.epochs=2",
        "learn.classification.batch_size=2", "learn.segmentation.batch_size=2",
        "learn.classification.warmup_iterations=0", "learn.segmentation.warmup_iterations=0",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(real)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((run / "reports" / "metrics.json").read_text())
    assert metrics["split"] == "val, first 4"
    rows = {row["name"]: row for row in metrics["rows"]}
    assert all(row["images"] == row["images_judged"] == 4 and row["failures"] == 0 for row in rows.values())
    # Four photographs say nothing about quality; that seeds hit something at all they do.
    assert 0.02 < rows["fine"]["miou"] <= 1
    assert len(list((run / "seeds" / "fine" / "png").iterdir())) == 4
