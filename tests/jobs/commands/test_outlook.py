"""`fmwsss status` tells what a stage was begun with and this release would not use, and what `run` would do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.commands.status import gather, show
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.pinned import pin_models
from fmwsss.jobs.stages import begin_stage, finish_stage
from fmwsss.jobs.steps import stages_of
from tests.support.fault_injection import DEMO

OLD = Path(__file__).parents[2] / "data" / "old_run"


def rows(state: dict[str, Any]) -> dict[str, list[str]]:
    return {row["stage"]: row["changes"] for row in state["stages"] if row["changes"]}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_the_release_before_is_gone_on_with(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = gather(Run(Folder(str(old))))
    assert rows(state) == {}
    assert state["next"] == "goes on with seeds/coarse"
    show(state)
    assert "next    `fmwsss run`: goes on with seeds/coarse" in capsys.readouterr().out


def test_another_method_and_another_setting_are_told(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(old / "superpixels" / "_inputs.json", method_version=0)
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["config"]["seeds"]["coarse"]["alpha"] = 0.25
    (old / "manifest.json").write_text(json.dumps(manifest))
    state = gather(Run(Folder(str(old))))
    assert rows(state) == {"superpixels": ["method_version: 0 -> 1"], "seeds/coarse": ["seeds.alpha: 0.4 -> 0.25"]}
    assert state["next"].startswith("refused, superpixels was begun with something else: `--from superpixels` makes it")
    show(state)
    assert "changed superpixels: method_version: 0 -> 1" in capsys.readouterr().out


def test_settings_that_this_release_does_not_know_are_told(old: Path) -> None:
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["config"]["of_a_later_release"] = 1
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert "of_a_later_release" in gather(Run(Folder(str(old))))["next"]


def test_what_was_read_and_is_made_again_since_is_told(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path)))
    config = load_config(DEMO, [f"run={tmp_path}"])
    images, superpixels = stages_of(config)[:2]
    run.write_manifest(
        {"config": config.model_dump(mode="json", exclude={"cluster"}), "models": {}, "units": {"images": "images",
         "superpixels": "images"}, "stages": ["images", "superpixels"]}
    )  # fmt: skip
    receipt = finish_stage(run, begin_stage(run, "images", images.inputs(), []), [], 0, 0)
    finish_stage(run, begin_stage(run, "superpixels", superpixels.inputs(), [receipt]), [], 0, 0)
    state = gather(run)
    assert (rows(state), state["next"]) == ({}, "nothing is left to be made")
    run.folder.child("images").delete(["_receipt.json"])
    run = Run(run.folder)
    finish_stage(run, begin_stage(run, "images", images.inputs(), []), ["part-00000.parquet"], 0, 0)
    assert rows(gather(Run(run.folder))) == {"superpixels": ["reads.images: made again since"]}


def test_weights_that_are_others_by_now_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at, and not opened as a network."""
    weights = tmp_path / "sam.pth"
    weights.write_bytes(b"ours")
    run = Run(Folder(str(tmp_path / "run")))
    settings = [f"run={tmp_path / 'run'}", "sam.model=vit_b", f"sam.weights={weights}"]
    config = load_config(DEMO, settings)
    monkeypatch.setattr(
        "fmwsss.jobs.config.pinned.check",
        lambda spec, role: {"model": spec.model, "sha256": "ab" * 32 if role == "sam" else None},
    )
    pinned, models = pin_models(config)
    monkeypatch.undo()
    stage = stages_of(pinned)[1]
    run.write_manifest(
        {"config": config.model_dump(mode="json", exclude={"cluster"}), "models": models,
         "units": {stage.name: "images"}, "stages": [stage.name]}
    )  # fmt: skip
    begin_stage(run, stage.name, stage.inputs(), [])
    found = rows(gather(Run(run.folder)))[stage.name]
    assert [line.partition(":")[0] for line in found] == ["sam.sha256"]
    weights.unlink()
    assert rows(gather(Run(run.folder))) == {}
