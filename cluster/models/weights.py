"""Weight files: fetched once a machine, checked by sha256, cached."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import fsspec

from fmwsss.cluster.models.spec import ModelError, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def weights_file(spec: ModelSpec) -> Path:
    """The weights as a local file, fetched once per machine and checked against the sha256 of the run file."""
    assert spec.weights
    if "://" not in spec.weights:
        path = Path(spec.weights).expanduser()
        if not path.is_file():
            raise ModelError(
                f"no weights at {spec.weights}; give the path of a checkpoint, or an s3:// or https:// URL"
            )
        if spec.sha256:
            _demand_sha256(path, spec.sha256, spec.weights)
        return path
    if not spec.sha256:
        raise ModelError(f"weights from a URL need `sha256`: {spec.weights}")
    cache = weights_cache()
    path = cache / (spec.sha256.lower() + PurePosixPath(urlsplit(spec.weights).path).suffix)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # All replicas of a machine start at once; the first one fetches, the others wait for it.
        with (cache.parent / f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _fetch(spec.weights, path, spec.sha256)
    return path


def weights_cache() -> Path:
    """The folder on this machine that keeps fetched weights, by their sha256."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fmwsss" / "weights"


def keep_compiled_code() -> None:
    """Lets torch.compile keep its code beside the weights, so that the next replica on this disk need not compile."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(weights_cache().parent / "compiled"))


def _fetch(url: str, path: Path, sha256: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as target, fsspec.open(url, "rb") as source:
            while block := source.read(1 << 24):  # type: ignore[union-attr]
                target.write(block)
        _demand_sha256(Path(temporary), sha256, _shown(url))
        os.replace(temporary, path)
    except ModelError:
        raise
    except Exception as error:
        # Whatever a client says may repeat what the address holds (a signature, a key): only its kind is told.
        raise ModelError(f"weights could not be fetched from {_shown(url)}: {type(error).__name__}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _demand_sha256(path: Path, sha256: str, name: str) -> None:
    found = file_sha256(path)
    if found != sha256.lower():
        raise ModelError(f"{name} has sha256 {found}, the run file says {sha256.lower()}: another or a damaged file")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def state_sha256(model: nn.Module) -> str:
    """The sha256 of a network's parameters and buffers, names included, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: safetensors, or PyTorch's own format without any code in it."""
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(f"{path} could not be read as a checkpoint of weights: {reason}") from None
