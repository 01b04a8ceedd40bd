"""Where an image was at work, and what became of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.errors import InputError
from fmwsss.core.schemas import IMAGES, failure_row
from fmwsss.jobs.commands.logs import run as tell
from fmwsss.jobs.images.readers.base import Source
from fmwsss.jobs.images.record import rows_of, write_record
from fmwsss.jobs.stages import begin_stage


def event(stage: str, part: str, process: int) -> dict:
    return {"cat": stage, "name": "SamReplica", "pid": "abcd1234", "tid": process, "ts": 1_800_000_000_000_000,
            "dur": 2_500_000, "args": {"part": part}}  # fmt: skip


def test_an_image_is_followed_through_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "ray" / "session_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker-ff-01000000-77.err").write_text("first line\nlast line of process 77\n")
    (logs / "worker-ff-01000000-78.err").write_text("of another shard\n")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    run = Run(Folder(str(tmp_path / "run")))
    sources = [Source(name, f"photos/{name}.jpg", ("cat",), None) for name in ("a", "b", "c")]
    with pytest.raises(InputError, match="its images are not taken yet"):
        tell(run, "c")
    write_record(run, "images", rows_of(sources, shard_rows=2))
    run.write_manifest({"config": {}, "models": {}, "stages": ["images", "superpixels"], "units": {}, "versions": {}})
    assert "no stage that is complete tells of it" in "\n".join(tell(run, "c"))
    begin_stage(run, "superpixels", {}, [])
    row = failure_row("c", "superpixels", ValueError("it is cut"))
    run.write_part("superpixels", "part-00001.parquet", [], IMAGES, [row])
    run.add_timeline(
        "superpixels", [event("superpixels", "part-00001.parquet", 77), event("superpixels", "part-00000.parquet", 78)]
    )
    told = "\n".join(tell(run, "c"))
    assert told.startswith("c is in shard 1 (part-00001.parquet), from photos/c.jpg\n")
    assert (
        "superpixels: SamReplica on node abcd1234, process 77, 2027-01-15T08:00:00+00:00, 2.50 s for the shard" in told
    )
    assert "failed in superpixels: ValueError: it is cut" in told
    assert "last line of process 77" in told
    assert "process 78" not in told
    assert "of another shard" not in told
    assert json.dumps(told)
    with pytest.raises(InputError, match="has no image 'd'"):
        tell(run, "d")
