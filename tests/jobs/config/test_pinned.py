"""Stages depend on what weights hold, not on where they lie: replaced ones are refused, in old runs too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from fmwsss.cluster.models.loaders import load_sam
from fmwsss.cluster.models.spec import ModelError
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import INPUTS, ChangedInputs, Run
from fmwsss.core.toy.models import new_sam
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.pinned import Models, adopt_weights, pin_models, pin_segmenter
from fmwsss.jobs.config.run import RunConfig

DEMO = str(Path(__file__).parents[3] / "configs" / "demo.yaml")
FACTORY = """
import torch
from pathlib import Path
from fmwsss.core.toy.models import new_sam

def make():
    sam = new_sam()
    sam.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return sam
"""


def _write(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    torch.save(new_sam().state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _inputs(config: RunConfig) -> dict[str, object]:
    return {"sam": config.sam.model_dump(), "propose": config.propose.model_dump(mode="json")}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Of a SAM whose weights lie in a file."""
    monkeypatch.setitem(sam_model_registry, "vit_b", new_sam)
    return load_config(DEMO, [f"run={tmp_path / 'run'}", f"sam={{model: vit_b, weights: {tmp_path / 'w.pt'}}}"])


def test_weights_that_are_replaced_are_another_input(config: RunConfig, tmp_path: Path) -> None:
    first = _write(tmp_path / "w.pt", 1)
    pinned, models = pin_models(config)
    assert (pinned.sam.sha256, models["sam"]["sha256"], pinned.clip) == (first, first, config.clip)
    run = Run(Folder(config.run))
    run.begin("superpixels", _inputs(pinned))
    run.begin("superpixels", _inputs(pin_models(config)[0]))
    second = _write(tmp_path / "w.pt", 2)
    with pytest.raises(ModelError, match=f"has sha256 {second}, the run has {first}"):
        load_sam(pinned.sam.spec())  # a worker that opens it later
    with pytest.raises(ChangedInputs, match=f'sam.sha256: "{first}" -> "{second}"'):
        run.begin("superpixels", _inputs(pin_models(config)[0]))


def test_weights_that_a_factory_reads_are_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_sam.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_config(DEMO, ["sam={factory: 'their_sam:make'}"])
    _write(tmp_path / "weights.pt", 1)
    pinned, _ = pin_models(config, ["sam"])
    load_sam(pinned.sam.spec())
    _write(tmp_path / "weights.pt", 2)
    assert pin_models(config, ["sam"])[0].sam.sha256 != pinned.sam.sha256
    with pytest.raises(ModelError, match=f"{pinned.sam.sha256} where the run was started: another or a damaged file"):
        load_sam(pinned.sam.spec())
    (tmp_path / "weights.pt").unlink()
    with pytest.raises(ModelError, match="sam: factory 'their_sam:make' fails: FileNotFoundError"):
        pin_models(config, ["sam"])


@pytest.mark.parametrize("network", ["deeplabv3plus", "mask2former"])
def test_weights_that_the_segmenter_begins_with_are_another_input(network: str, tmp_path: Path) -> None:
    weights = tmp_path / ("resnet.pth" if network == "deeplabv3plus" else "model.safetensors")
    named = weights if network == "deeplabv3plus" else tmp_path
    config = load_config(DEMO, [f"segmenter={{network: {network}, weights: {named}, iterations: 1}}"])
    sums = []
    for seed in range(2):
        save_file({"conv1.weight": torch.full((2,), float(seed))}, weights)
        models: Models = {}
        pinned = pin_segmenter(config, models)
        assert pinned.segmenter
        sums.append(pinned.segmenter.weights_sha256)
        assert sums[-1] == models["segmenter"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sums[0] != sums[1]
    weights.unlink()
    with pytest.raises(ModelError, match=r"there is no|no weights at"):
        pin_segmenter(config, {})


@pytest.mark.parametrize("recorded", ["same", "other", "nothing"])
def test_a_run_of_an_earlier_release_goes_on_with_the_weights_it_had(
    recorded: str, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "w.pt", 1)
    pinned, models = pin_models(config)
    run = Run(Folder(config.run))
    run.begin("superpixels", _inputs(config))  # a path, and no sum
    sums = {"same": pinned.sam.sha256, "other": "0" * 64, "nothing": None}
    adopt_weights(run, ["superpixels"], {"sam": {"sha256": sums[recorded]}}, models)
    told = capsys.readouterr().out
    if recorded == "other":
        with pytest.raises(ChangedInputs, match=f'sam.sha256: "{"0" * 64}" -> "{pinned.sam.sha256}"'):
            run.begin("superpixels", _inputs(pinned))
        return
    run.begin("superpixels", _inputs(pinned))
    assert ("they are taken to be the same as now" in told) == (recorded == "nothing")
    written = json.loads(run.folder.child("superpixels").read(INPUTS))
    assert written["sam"]["sha256"] == pinned.sam.sha256
