"""A machine vanishes in every stage of a whole run, with models, both trainings and predictions: the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.training.checkpoint import CHECKPOINT_FILE
from tests.support.fault_injection import ThreeNodes, end, has_begun, outputs, rows, start_run, wait_until
from tests.support.segmenter_runs import CONFIG, TINY

MORE = [
    *TINY, "predict.cam_weight=0.5", "segmenter.engine=ray", "segmenter.iterations=60",
    "learn.classification.cache=input", "learn.classification.epochs=6", "learn.segmentation.epochs=6",
]  # fmt: skip
LEARNED = ("prompts/classification", "prompts/segmentation", "segmenter/round-1")
# Not predictions/validation/images: done before anything could happen to it, and ingested as images/ is.
STAGES = (
    "images", "superpixels", "features/classification", "prompts/classification", "seeds/coarse",
    "prompts/segmentation", "seeds/fine", "segmenter/round-1", "predictions/validation/predicted",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_node_is_lost_in_every_stage(tmp_path: Path) -> None:
    nodes, log = ThreeNodes(), tmp_path / "log"
    calm, run = str(tmp_path / "calm"), str(tmp_path / "run")
    lost: dict[str, str] = {}
    try:
        assert start_run(calm, nodes.address, log, MORE, CONFIG).wait(900) == 0, log.read_text()
        process = start_run(run, nodes.address, log, MORE, CONFIG)
        try:
            for stage in STAGES:
                wait_until(has_begun(run, stage), process)
                if stage in LEARNED:
                    folder = Folder(run).child(stage)
                    wait_until(lambda folder=folder: folder.exists(CHECKPOINT_FILE), process)
                while Run(Folder(run)).receipt(stage) is None and stage not in lost:
                    name = nodes.kill_busy_node()
                    if name:
                        lost[stage] = name
            assert process.wait(900) == 0, log.read_text()
        finally:
            end(process)
    finally:
        nodes.shutdown()
    assert rows(run) == rows(calm)
    assert outputs(run) == outputs(calm)
    assert Run(Folder(run)).failures().num_rows == 0
    assert lost.keys() == set(STAGES)
