"""Models named in a run file: what is missing or wrong is told before anything starts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest
import torch
from open_clip import CLIP

from fmwsss.cluster.models.checkpoint import load_state
from fmwsss.cluster.models.loaders import check, load_clip, load_sam
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import file_sha256, state_sha256, weights_file

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("role", "spec", "sentence"),
    [
        ("clip", ModelSpec(model="ViT-B-16"), "clip: model 'ViT-B-16' needs weights"),
        ("sam", ModelSpec(model="vit_b", weights="/tmp"), "sam: a folder at /tmp; give the path of a checkpoint"),
        ("sam", ModelSpec(model="vit_x", weights="w"), "sam: there is no model 'vit_x'; near it are"),
        ("sam", ModelSpec(model="vit_b", weights="/none/w.pth"), "sam: no weights at /none/w.pth"),
        ("clip", ModelSpec(model="ViT-B-61", weights="openai"), "clip: there is no model 'ViT-B-61'; near it are"),
        ("clip", ModelSpec(factory="no.such:thing"), "clip: factory 'no.such:thing' cannot be imported"),
        ("clip", ModelSpec(factory="json:lods"), "clip: factory 'json:lods': module 'json' has no 'lods'"),
        ("sam", ModelSpec(model="vit_b", weights="s3://bucket/w.pth"), "sam: weights from a URL need `sha256`"),
    ],
)
def test_what_cannot_be_had_is_one_line(role: Literal["clip", "sam"], spec: ModelSpec, sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        check(spec, role)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_wrong_sha256_gives_both(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(ModelError, match=f"has sha256 {file_sha256(path)}, the run has {'0' * 64}"):
        check(ModelSpec(model="vit_b", weights=str(path), sha256="0" * 64), "sam")


def test_weights_from_a_url_are_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "w.safetensors"
    source.write_bytes(b"weights")
    spec = ModelSpec(model="vit_b", weights=f"file://{source}", sha256=file_sha256(source))
    fetched = weights_file(spec)
    source.unlink()
    assert weights_file(spec) == fetched
    assert fetched.read_bytes() == b"weights"
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=f"has sha256 {file_sha256(other)} .7 bytes. and not {'1' * 64}: another or"):
        weights_file(ModelSpec(model="vit_b", weights=f"file://{other}", sha256="1" * 64))
    assert len(list(fetched.parent.iterdir())) == 1, "a file that was refused must not stay in the cache"


def test_a_damaged_file_of_the_cache_is_fetched_again_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "w.safetensors"
    source.write_bytes(b"weights")
    spec = ModelSpec(model="vit_b", weights=f"file://{source}", sha256=file_sha256(source))
    fetched = weights_file(spec)
    fetched.write_bytes(b"weighty")
    assert weights_file(spec).read_bytes() == b"weights"
    fetched.write_bytes(b"weighty")
    source.unlink()
    with pytest.raises(ModelError, match=f"is damaged, and file://{source} could not be fetched: it does not exist"):
        weights_file(spec)


@pytest.mark.parametrize(
    ("role", "spec", "name"),
    [
        ("sam", ModelSpec(model="vit_h"), "vit_h"),
        ("sam", ModelSpec(model="vit_t"), "vit_t"),
        ("clip", ModelSpec(model="ViT-B-16", weights="openai"), "ViT-B-16-quickgelu/openai"),
        ("clip", ModelSpec(model="ViT-L-14-336-quickgelu", weights="openai"), "ViT-L-14-336-quickgelu/openai"),
    ],
)
def test_a_known_name_without_internet_is_refused_in_one_line(
    role: Literal["clip", "sam"], spec: ModelSpec, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("fmwsss.cluster.models.download.FIRST_WAIT_S", 0.0)
    with pytest.raises(ModelError) as caught:
        check(spec, role)
    told = str(caught.value)
    assert told.startswith(f"{role}: the file of {name} is not on this machine, and https://")
    assert "could not be fetched: no connection (ConnectionRefusedError)" in told
    assert f"with internet `fmwsss fetch {name}` fetches it, and its copy goes to {tmp_path}/fmwsss/weights/" in told
    assert f"or give the path of the file as `{role}.weights`" in told
    assert "\n" not in told


def test_a_tag_of_the_hub_without_internet_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda tag: pytest.fail("it tries for a minute"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="clip: the weights ViT-B-16/laion2b_s34b_b88k are not on this machine and"):
        check(ModelSpec(model="ViT-B-16", weights="laion2b_s34b_b88k"), "clip")


def test_the_replicas_of_a_machine_fetch_once(tmp_path: Path) -> None:
    """Several processes at once, from a web server that counts."""
    asked: list[str] = []

    class Weights(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.command)
            time.sleep(0.5)
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"weights" if self.command == "GET" else b"")

        do_HEAD = do_GET  # noqa: N815 - named by the base class

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Weights)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, sha256 = f"http://127.0.0.1:{server.server_port}/w.pth", hashlib.sha256(b"weights").hexdigest()
    code = f"""
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.models.weights import weights_file
print(weights_file(ModelSpec(model="vit_b", weights="{url}", sha256="{sha256}")).read_bytes())
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(3)
    ]
    assert [process.communicate()[0] for process in processes] == [b"b'weights'\n"] * 3
    server.shutdown()
    server.server_close()
    assert asked.count("GET") == 1


def test_a_pickle_with_code_is_not_executed(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'harmed')!r}, 'w')",)

    torch.save({"image_encoder.pos_embed": Harm()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="could not be read as a checkpoint"):
        load_sam(ModelSpec(model="vit_b", weights=str(tmp_path / "w.pth")))
    assert not (tmp_path / "harmed").exists()


def test_the_toy_models_load_and_the_identity_follows_the_weights() -> None:
    clip = load_clip(ModelSpec(model="toy"))
    other = load_clip(ModelSpec(model="toy"))
    assert clip.identity == other.identity
    with torch.no_grad():
        parameter = next(other.parameters())
        parameter.add_(1e-3)
    assert state_sha256(other) != state_sha256(clip)
    assert not load_sam(ModelSpec(model="toy")).training


def test_a_factory_must_give_the_right_kind() -> None:
    with pytest.raises(ModelError, match="not an open_clip CLIP"):
        load_clip(ModelSpec(factory="fmwsss.core.toy.models:toy_sam"))
    assert isinstance(load_clip(ModelSpec(factory="fmwsss.core.toy.models:toy_clip")).model, CLIP)


def test_mobile_sam_by_its_name(real: Path) -> None:
    """Its published weights, without the classifier that they were trained with."""
    path = real / "weights" / "mobile_sam.safetensors"
    spec = ModelSpec(model="vit_t", weights=str(path))
    assert check(spec, "sam")["sha256"] == file_sha256(path)
    state, given = load_sam(spec).state_dict(), load_state(path)
    assert all(torch.equal(state[name], tensor.float().cpu()) for name, tensor in given.items())
