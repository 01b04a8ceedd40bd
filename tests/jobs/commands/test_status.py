"""`fmwsss status` of the second stage, whose predictions are a run in the run."""

from __future__ import annotations

from pathlib import Path

from fmwsss.cluster.storage.driver_lock import hold
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.schemas import IMAGES
from fmwsss.jobs.commands.status import gather
from fmwsss.jobs.stages import begin_stage, finish_stage

UNITS = {
    "images": "images", "segmenter/round-1": "iterations", "segmenter/round-2": "iterations",
    "predictions/validation/predicted": "images", "reports": None,
}  # fmt: skip
STAGES = list(UNITS)


def test_rounds_and_predictions_are_told(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path)))
    run.write_manifest({"config": {}, "models": {}, "stages": STAGES, "units": UNITS, "versions": {}})
    finish_stage(run, begin_stage(run, "images", {}, []), parts=[], num_rows=96, num_failures=0)
    finish_stage(run, begin_stage(run, "segmenter/round-1", {}, []), parts=[], num_rows=2000, num_failures=0)
    own = Run(run.folder.child("predictions/validation"))
    failure = {"image_id": "a", "stage": "predicted", "error_type": "ImageError", "message": "it is cut"}
    begin_stage(own, "predicted", {}, [])
    own.write_part("predicted", "part-00000.parquet", [], IMAGES, [failure])

    def told(stage: str, total: int) -> dict[str, dict]:
        progress = {"stage": stage, "total": total, "done": 20, "resumed": 0, "failed": 1, "seconds": 10.0, "note": ""}
        with hold(run.folder, lambda: progress):
            state = gather(run)
        assert state["failures"] == [
            {"stage": "predictions/validation/predicted", "error_type": "ImageError", "images": 1}
        ]
        return {row["stage"]: row for row in state["stages"]}

    rows = told("segmenter/round-2", 2000)
    assert list(rows) == STAGES[:-1]
    assert rows["segmenter/round-1"]["state"] == "complete"
    assert (rows["segmenter/round-2"]["state"], rows["segmenter/round-2"]["seconds_left"]) == ("working", 990.0)
    # 96 images are the run's, not those that are predicted.
    assert rows["predictions/validation/predicted"]["total"] is None
    predicted = told(STAGES[3], 64)[STAGES[3]]
    assert (predicted["state"], predicted["left"], predicted["per_second"]) == ("working", 44, 2.0)
