"""Segmenters as files: the same predictions once stored and loaded, weights of others, and use without this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from fmwsss.cluster.models.segmenters import (
    SegmenterSpec,
    load_segmenter,
    new_segmenter,
    segmenter_files,
    spec_from_json,
)
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.segmenter.inference import probabilities
from fmwsss.core.segmenter.optimizer import backward, make_optimizer
from fmwsss.core.toy.world import TOY, draw_scene

NAMES = ("background", *TOY.classes)
OPTIONS = {
    "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 64,
    "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 15, "train_num_points": 200,
}  # fmt: skip
RESNET = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 32, 32], "depths": [1] * 4,
    "layer_type": "basic",
}  # fmt: skip
SWIN = {
    "model_type": "swin", "image_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2],
    "window_size": 4,
}  # fmt: skip


def spec(**changes: Any) -> SegmenterSpec:
    own: dict[str, Any] = {"network": "mask2former", "class_names": NAMES, "short_side_px": 96, "options": OPTIONS}
    return SegmenterSpec(**{**own, "backbone": RESNET, **changes})


def write(folder: Path, own: SegmenterSpec) -> Folder:
    files = segmenter_files(new_segmenter(own), own)
    target = Folder(str(folder))
    target.write_many(files)
    return target


def deeplab(num_classes: int) -> torch.nn.Module:
    from fmwsss.core.segmenter.deeplab import DeepLabV3Plus

    return DeepLabV3Plus(num_classes, "resnet26", random_seed=3)


def no_network(num_classes: int) -> int:
    return num_classes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": SWIN},
        {"backbone": {"model_type": "clip"}, "clip": ModelSpec("toy")},
        {"network": "deeplabv3plus", "resnet": "resnet26"},
        {"factory": f"{__name__}:deeplab"},
        {"factory": "benchmarks.lite_segmenter:LiteSegmenter"},
    ],
)
def test_what_is_stored_predicts_the_same_when_loaded(changes: dict[str, Any], tmp_path: Path):
    own = spec(**changes)
    segmenter = new_segmenter(own)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    Folder(str(tmp_path)).write_many(segmenter_files(segmenter, own))
    loaded = load_segmenter(Folder(str(tmp_path)), own)
    image = draw_scene(3).image
    expected = probabilities(segmenter.eval(), image, own.short_side_px)
    assert torch.equal(probabilities(loaded, image, own.short_side_px), expected)


def test_how_queries_are_merged_is_for_the_prediction_to_say(tmp_path: Path):
    folder = write(tmp_path, spec())
    image = draw_scene(3).image
    by_sum, by_max = (
        probabilities(load_segmenter(folder, spec(merge_queries=merge)), image, 64) for merge in ("sum", "max")
    )
    assert not torch.allclose(by_sum, by_max)


@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["resnet", "swin"])
def test_weights_of_a_whole_network_with_other_classes(backbone: dict[str, Any], tmp_path: Path):
    other = spec(class_names=("background", "thing"), random_seed=5, backbone=backbone)
    whole = write(tmp_path / "whole", other)
    given = load_segmenter(whole, other)
    begun = new_segmenter(spec(weights=whole.url, backbone=backbone))
    assert begun.num_classes == 13
    own, theirs = begun.state_dict(), given.state_dict()
    different = [name for name in theirs if "class_predictor" not in name and not torch.equal(own[name], theirs[name])]
    assert not [name for name in different if "criterion" not in name]


@pytest.mark.parametrize("around", [AutoBackbone, AutoModel, AutoModelForImageClassification])
@pytest.mark.parametrize("own", [RESNET, SWIN], ids=["resnet", "swin"])
def test_weights_of_a_backbone_however_it_was_published(own: dict[str, Any], around: Any, tmp_path: Path):
    settings = {key: value for key, value in own.items() if key != "model_type"}
    published = around.from_config(AutoConfig.for_model(own["model_type"], **settings))
    published.save_pretrained(tmp_path)
    begun = new_segmenter(spec(weights=str(tmp_path), backbone=own))

    def by_place(module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {re.sub(r"^(swin|resnet)\.|encoder\.", "", name): value for name, value in module.named_parameters()}

    ours, theirs = by_place(begun.backbone), by_place(published)
    different = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    assert len(different) < len(ours) / 2
    assert not [name for name in different if "hidden_states_norms" not in name]


def test_mistakes_are_one_line(tmp_path: Path):
    other = {**RESNET, "hidden_sizes": [16, 16, 16, 16]}
    folder = write(tmp_path, spec(backbone=other))
    for changes, message in (
        ({"weights": folder.url}, "do not fit: there is nothing for"),
        ({"backbone": {**RESNET, "depth": 2}}, "'depth' is no setting"),
        ({"factory": f"{__name__}:no_network"}, "returned int, neither"),
        ({"backbone": {"model_type": "clip", "width": 3}, "clip": ModelSpec("toy")}, "takes no settings"),
        ({"network": "deeplabv3plus", "resnet": "resnet26", "merge_queries": "max"}, "has no queries"),
    ):
        with pytest.raises(ModelError, match=message):
            new_segmenter(spec(**changes))


def test_weights_of_another_network_are_refused(tmp_path: Path):
    folder = write(tmp_path, spec())
    with pytest.raises(ModelError, match="does not fit the network of the run file"):
        load_segmenter(folder, spec(options={**OPTIONS, "decoder_layers": 3}))


def test_a_specification_survives_json():
    import json
    from dataclasses import asdict

    own = spec(clip=ModelSpec(factory="a:b"), weights="somewhere")
    assert spec_from_json(json.dumps(asdict(own))) == own


@pytest.mark.timeout(300)
def test_the_script_of_the_docs_runs_and_says_what_we_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own, scene = spec(), draw_scene(3)
    segmenter = new_segmenter(own).train()
    optimizer = make_optimizer(segmenter, "adamw", 3e-3, 0.0, 1.0)
    image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None, :, :96, :96]
    labels = torch.from_numpy(scene.truth.copy())[None, :96, :96]
    for step in range(40):
        optimizer.zero_grad()
        backward(segmenter, image, labels, None, [step], 1, "float32", lambda values: values)
        optimizer.step()
    segmenter.eval()
    Folder(str(tmp_path / "last")).write_many(segmenter_files(segmenter, own))
    Image.fromarray(scene.image).save(tmp_path / "photo.png")

    text = (Path(__file__).parents[3] / "docs" / "segmenter.md").read_text()
    script, _ = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    script = script.replace("runs/mine/segmenter/round-1/last", str(tmp_path / "last"))
    script = script.replace("photo.jpg", str(tmp_path / "photo.png"))
    names: dict[str, Any] = {}
    exec(script, names)
    said = probabilities(segmenter, scene.image, own.short_side_px).argmax(0)
    assert (names["labels"] == said).float().mean() > 0.9
    assert "background" in capsys.readouterr().out
    assert np.mean(said.numpy() == scene.truth) > 0.7
