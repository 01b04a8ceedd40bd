"""A trained segmenter as one file: the script of docs/segmenter.md runs without us, and says what we say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmwsss.cluster.models.segmenters import load_segmenter, new_segmenter, segmenter_files
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.toy.world import draw_scene
from fmwsss.jobs.cli import main
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.exporters.torch_program import export
from fmwsss.jobs.segmenter.trained import segmenter_spec
from fmwsss.jobs.stages import StartedStage, finish_stage
from tests.support.segmenter_runs import tiny_config

DOCS = Path(__file__).parents[3] / "docs"
STAGE = "segmenter/round-1"
HEIGHT, WIDTH = 96, 128
FILE = '"runs/mine/segmenter/round-1/last/scores-512x672.pt2"'
ON_CLIP = [
    "predict.merge_queries=max",
    "segmenter.backbone={model_type: clip}",
    "segmenter.options={hidden_dim: 32, feature_size: 32, mask_feature_size: 32, encoder_feedforward_dim: 32, "
    "dim_feedforward: 64, encoder_layers: 1, decoder_layers: 2, num_attention_heads: 2, num_queries: 15}",
]
DEEPLAB = ["segmenter.network=deeplabv3plus", "segmenter.resnet=resnet50"]


def make_trained(path: Path, *settings: str) -> tuple[RunConfig, Run]:
    """A run whose segmenter counts as trained."""
    config, run = tiny_config(path, *settings), Run(Folder(str(path)))
    spec = segmenter_spec(config)
    run.folder.child(STAGE).child("last").write_many(segmenter_files(new_segmenter(spec), spec))
    run.begin(STAGE, {})
    finish_stage(run, StartedStage(STAGE, {}, set(), None), [], 1, 0)
    return config, run


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(draw_scene(3).image).resize((WIDTH, HEIGHT)).save(path)
    return str(path)


def run_script(number: int, change: Callable[[str], str]) -> set[str]:
    """What a script of the documentation prints; it must not have loaded anything of ours."""
    script = re.findall(r"```python\n(.*?)```", (DOCS / "segmenter.md").read_text(), re.DOTALL)[number]
    ours = "import sys; assert not {'fmwsss', 'ray'} & set(sys.modules)"
    command = [sys.executable, "-c", change(script) + ours]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return eval(result.stdout)


@pytest.mark.parametrize("settings", [ON_CLIP, pytest.param(DEEPLAB, marks=pytest.mark.long)], ids=["clip", "deeplab"])
def test_an_exported_segmenter_says_without_us_what_it_says_here(settings: list[str], tmp_path: Path, photo: str):
    config, run = make_trained(tmp_path / "run", *settings)
    url = export(config, run, HEIGHT, WIDTH)
    image = torch.from_numpy(np.array(Image.open(photo).convert("RGB"))).permute(2, 0, 1)[None]
    ours = load_segmenter(run.folder.child(STAGE).child("last"), segmenter_spec(config)).cpu().scores(image)
    parts = {"classes.json": ""}
    program = torch.export.load(url, extra_files=parts)
    assert not [name for name in program.state_dict if "token_embedding" in name or "auxiliary" in name]
    theirs = program.module()(image)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    names = json.loads(parts["classes.json"])
    assert names == ["background", *config.resolve_vocabulary().classes]

    def change(script: str) -> str:
        changed = (
            script.replace(FILE, repr(url)).replace("photo.jpg", photo).replace("(672, 512)", f"({WIDTH}, {HEIGHT})")
        )
        assert changed.count(photo) == changed.count(url) == 1
        return changed

    assert run_script(1, change) == {names[index] for index in ours[0].argmax(0).unique().tolist()}


def test_the_command_exports_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config, run = make_trained(tmp_path / "run")
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"}), "stages": [STAGE]})
    command = ["export", run.folder.url, "--size", "96x128"]
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert not caught.value.code
    told, hint = capsys.readouterr().out.splitlines()
    assert hint == "it was trained with a short side of 64 px: accuracy may drop at other sizes"
    assert Path(told.removeprefix("exported: ")).stat().st_size > 10_000
    run.folder.child(STAGE).delete(["_receipt.json"])
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert "export needs segmenter/round-1" in capsys.readouterr().err


def test_a_size_that_the_network_does_not_take_is_told(tmp_path: Path):
    config, run = make_trained(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^the sides of --size are multiples of 32 for this network, not 100x128$"):
        export(config, run, 100, 128)
