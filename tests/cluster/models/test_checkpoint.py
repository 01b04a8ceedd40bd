"""Random weights in every format come out as the same network; nothing in a file is executed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torch import Tensor, nn

from fmwsss.cluster.models.checkpoint import read_checkpoint
from fmwsss.cluster.models.loaders import check, load_clip, load_sam
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.core.clip.prefix_tree import token_tree
from fmwsss.core.toy.models import new_sam

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "ViT-tiny.json").write_text(json.dumps(TINY))
    (folder / "ViT-tiny-quickgelu.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    (folder / "ViT-tiny-custom.json").write_text(json.dumps({**TINY, "custom_text": True}))
    open_clip.add_model_config(folder)


class _Published(nn.Module):
    """A CLIP with the buffers and the name of the program that OpenAI published its archives from."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.visual, self.transformer = clip.visual, clip.transformer
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.logit_scale = clip.logit_scale
        for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images: Tensor) -> Tensor:
        visual: Any = self.visual
        return visual(images)


def _clip() -> Any:
    torch.manual_seed(3)
    clip = open_clip.create_model("ViT-tiny").eval()
    with torch.no_grad():
        for parameter in clip.parameters():  # as much as half precision has
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half().float())
    return clip


def _archive(clip: Any, path: Path) -> None:
    pixels = torch.zeros(1, 3, 32, 32).half()
    traced: Any = torch.jit.trace(_Published(clip).half().eval(), pixels, check_trace=False)
    traced.save(str(path))


def _openai_entries() -> dict[str, Tensor]:
    return {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}


WRITERS: dict[str, Callable[[Any, Path], object]] = {
    "plain": lambda clip, path: torch.save(clip.state_dict(), path),
    "half": lambda clip, path: torch.save(clip.half().state_dict(), path),
    "state_dict": lambda clip, path: torch.save({"state_dict": clip.state_dict(), "epoch": 3}, path),
    "model": lambda clip, path: torch.save({"model": clip.state_dict()}, path),
    "module": lambda clip, path: torch.save(nn.ModuleDict({"module": clip}).state_dict(), path),
    "both": lambda clip, path: torch.save({"state_dict": nn.ModuleDict({"module": clip}).state_dict()}, path),
    "old": lambda clip, path: torch.save(clip.state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda clip, path: save_file(clip.state_dict(), path),
    "openai": lambda clip, path: torch.save({**clip.half().state_dict(), **_openai_entries()}, path),
    "archive": _archive,
}


@pytest.mark.parametrize("form", WRITERS)
def test_a_clip_in_each_format_gives_equal_outputs(form: str, tmp_path: Path) -> None:
    clip, path = _clip(), tmp_path / "weights.bin"
    expected: Any = open_clip.create_model("ViT-tiny", force_quick_gelu=form in ("openai", "archive")).eval()
    expected.load_state_dict(clip.state_dict())
    WRITERS[form](clip, path)
    spec = ModelSpec(model="ViT-tiny", weights=str(path))
    about = check(spec, "clip")
    loaded: Any = load_clip(spec).model
    images, ids = torch.rand(2, 3, 32, 32), torch.randint(1, 49407, (2, 77))
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(images), expected.encode_image(images))
        assert torch.equal(loaded.encode_text(ids), expected.encode_text(ids))
    assert about["model"] == ("ViT-tiny-quickgelu" if form in ("openai", "archive") else "ViT-tiny")
    if form in ("openai", "archive"):
        assert "was trained with QuickGELU: used as ViT-tiny-quickgelu, not as ViT-tiny" in str(about["note"])
        assert "note" not in check(ModelSpec(model="ViT-tiny-quickgelu", weights=str(path)), "clip")


def test_a_text_tower_of_its_own_gives_the_same(tmp_path: Path) -> None:
    clip, path = _clip(), tmp_path / "weights.pt"
    torch.save(clip.state_dict(), path)
    one, other = (load_clip(ModelSpec(model=name, weights=str(path))) for name in ("ViT-tiny", "ViT-tiny-custom"))
    ids = one.token_ids(["a photo of a cat", "dog"])
    assert torch.equal(ids, other.token_ids(["a photo of a cat", "dog"]))
    tree = token_tree([row[: end + 1] for row, end in zip(ids.tolist(), one.end_positions(ids).tolist(), strict=True)])
    first, second = (own.encode_text(own.token_embeddings(torch.tensor(tree.symbols)), tree) for own in (one, other))
    assert torch.equal(first, second)
    assert (one.text_width, one.words()[0]) == (other.text_width, other.words()[0])


def test_an_archive_has_the_state_that_torch_finds_in_it(tmp_path: Path) -> None:
    """torch.jit.load, which we do not use, is the reference."""
    _archive(_clip(), tmp_path / "w.pt")
    expected = torch.jit.load(str(tmp_path / "w.pt")).state_dict()
    entries = {"input_resolution", "context_length", "vocab_size"}
    for with_values in (True, False):
        found = read_checkpoint(tmp_path / "w.pt", with_values).tensors
        assert set(found) == set(expected) - entries
        for name, tensor in found.items():
            assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
            assert tensor.is_meta or torch.equal(tensor, expected[name])
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Linear(3, 4)), nn.PReLU()))
    scripted.save(str(tmp_path / "s.pt"))
    found = read_checkpoint(tmp_path / "s.pt").tensors
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in scripted.state_dict().items()
    }


@pytest.mark.parametrize("form", ["plain", "half", "model", "module", "safetensors"])
def test_a_sam_in_each_format(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sam_model_registry, "vit_b", new_sam)
    torch.manual_seed(5)
    sam = new_sam()
    with torch.no_grad():
        for tensor in (*sam.parameters(), *sam.buffers()):
            tensor.copy_(tensor.half().float())
    expected = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    WRITERS[form](sam, tmp_path / "sam.pth")
    spec = ModelSpec(model="vit_b", weights=str(tmp_path / "sam.pth"))
    assert len(str(check(spec, "sam")["sha256"])) == 64
    loaded = load_sam(spec).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())


def test_what_does_not_fit_is_counted_and_named(tmp_path: Path) -> None:
    state = _clip().state_dict()
    state["visual.more"] = torch.zeros(2)
    state["visual.proj"] = torch.zeros(32, 8)
    names = [name for name in state if name.startswith("transformer.resblocks.1.")]
    for name in names:
        del state[name]
    torch.save(state, tmp_path / "w.pt")
    for look in (lambda spec: check(spec, "clip"), load_clip):
        with pytest.raises(ModelError) as caught:
            look(ModelSpec(model="ViT-tiny", weights=str(tmp_path / "w.pt")))
        told = str(caught.value)
        assert f"do not fit clip.model 'ViT-tiny': {len(names)} missing ({', '.join(names[:3])}, ...)" in told
        assert "1 unexpected (visual.more); 1 of another shape (visual.proj (32 x 8 in the file, 32 x 16 in" in told
        assert "\n" not in told


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "it is a pointer of Git LFS"),
        (b"nonsense", "could not be read as a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match=sentence) as caught:
        check(ModelSpec(model="vit_b", weights=str(tmp_path / "w.pth")), "sam")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["plain", "safetensors", "archive", "old"])
def test_a_file_that_is_cut_off_is_told_before_anything_is_loaded(form: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    WRITERS[form](_clip(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"cut off or damaged|could not be read as a checkpoint"):
        check(ModelSpec(model="ViT-tiny", weights=str(path)), "clip")


def test_code_in_an_archive_is_not_executed(tmp_path: Path) -> None:
    """A description that calls a function stays a description; nor does TorchScript's own `__setstate__` run."""
    path = tmp_path / "w.pt"
    text = f"open({str(tmp_path / 'harmed')!r}, 'w')".encode()
    harm = b"\x80\x02cbuiltins\nexec\nX" + len(text).to_bytes(4, "little") + text + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/constants.pkl", b"\x80\x02).")
        archive.writestr("w/data.pkl", harm)
    with pytest.raises(ModelError, match="the archive holds no module"):
        load_clip(ModelSpec(model="ViT-tiny", weights=str(path)))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("RN50-quickgelu", "image tower is a ModifiedResNet"),
        ("ViT-B-16-SigLIP2", "image tower vit_base_patch16_siglip_224 of timm"),
        ("EVA02-B-16", "image tower eva02_base_patch16_clip_224 of timm"),
        ("coca_ViT-B-32", "is a CoCa"),
        ("roberta-ViT-B-32", "text tower roberta-base of transformers"),
        ("ViT-H-14-worldwide", "reads the tokens of facebook/xlm-v-base"),
    ],
)
def test_a_clip_of_another_kind_is_refused_by_its_tower(model: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        check(ModelSpec(model=model, weights="/none/w.pt"), "clip")
    assert "supported are open_clip's own vision transformers" in str(caught.value)
    assert "\n" not in str(caught.value)
