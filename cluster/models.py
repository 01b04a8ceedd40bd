"""From the words of a run file to a loaded network: by name and weights, or by a factory of the user's own.

Nothing in a weight file is executed: safetensors, or PyTorch's own format with `weights_only`.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import fsspec

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor, nn

    from fmwsss_core.clip import FrozenClip


class ModelError(ValueError):
    """A model that cannot be had as the run file asks for it; the message says what to do."""


@dataclass(frozen=True)
class ModelSpec:
    """A network as a run file names it.

    Attributes:
        model: `toy`, an open_clip architecture, or a segment-anything type (`vit_b`, `vit_l`, `vit_h`).
        weights: an open_clip tag, a path, or an s3:// or https:// URL (then with `sha256`).
        sha256: what the file must hash to; checked before it is read.
        factory: `package.module:function`, called without arguments, in place of all the others; returns what the
            library's own constructor returns.
    """

    model: str | None = None
    weights: str | None = None
    sha256: str | None = None
    factory: str | None = None


def load_clip(spec: ModelSpec) -> FrozenClip:
    """The frozen CLIP of a run, on this process's device, with an identity that its learned prompts are tied to.

    Raises:
        ModelError: an unknown architecture, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    from open_clip import CLIP

    from fmwsss_core.clip import FrozenClip

    if spec.factory:
        model = _call_factory(spec.factory)
    elif spec.model == "toy":
        from fmwsss_core.toy.models import toy_clip

        model = toy_clip()
    else:
        model = _open_clip_model(spec)
    if not isinstance(model, CLIP):
        raise ModelError(f"clip: {spec.factory or spec.model} is a {type(model).__name__}, not an open_clip CLIP")
    # The last name alone: a path has a machine's folders, a URL perhaps a signature.
    weights = PurePosixPath(urlsplit(spec.weights).path).name if spec.weights else ""
    name = spec.factory or f"{spec.model} {weights}".strip()
    return FrozenClip(model, identity=state_sha256(model), name=name).to(pick_device())


def load_sam(spec: ModelSpec) -> Sam:
    """The SAM of a run, in evaluation mode, on this process's device.

    Raises:
        ModelError: an unknown type, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    from segment_anything.modeling import Sam

    if spec.factory:
        sam = _call_factory(spec.factory)
    elif spec.model == "toy":
        from fmwsss_core.toy.models import toy_sam

        sam = toy_sam()
    else:
        sam = _registered_sam(spec)
    if not isinstance(sam, Sam):
        raise ModelError(f"sam: {spec.factory or spec.model} is a {type(sam).__name__}, not a segment_anything Sam")
    return sam.eval().requires_grad_(False).to(pick_device())


def check(spec: ModelSpec, role: Literal["clip", "sam"]) -> dict[str, str | None]:
    """Refuses early, on the driver, what would fail on every worker; loads no network.

    Returns:
        What the manifest says of the model: its words, and the sha256 of its weight file if it has one.

    Raises:
        ModelError: an unknown model, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    about: dict[str, str | None] = {"model": spec.model, "factory": spec.factory, "weights": spec.weights}
    try:
        if spec.factory:
            find_factory(spec.factory)
        elif spec.model != "toy":
            if spec.model not in _known_models(role):
                near = difflib.get_close_matches(str(spec.model), _known_models(role), n=3)
                hint = f"; near it are {', '.join(near)}" if near else ""
                raise ModelError(f"there is no model {spec.model!r}{hint}; or give a factory")
            if not spec.weights:
                raise ModelError(f"model {spec.model!r} needs weights: a path or URL (for open_clip also a tag)")
            if role == "sam" or not _is_tag(spec):
                about["sha256"] = file_sha256(weights_file(spec))
    except ModelError as error:
        raise ModelError(f"{role}: {error}") from None
    return about


def _known_models(role: str) -> list[str]:
    if role == "sam":
        from segment_anything import sam_model_registry

        return [name for name in sam_model_registry if name != "default"]
    import open_clip

    return open_clip.list_models()


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


def pick_device() -> str:
    """`cuda` where this process was given a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() and not _is_worker_without_gpu() else "cpu"


def _is_worker_without_gpu() -> bool:
    """Whether Ray gave this worker none: it does not hide the machine's GPUs from it."""
    if "ray" not in sys.modules:  # a worker has it; `fmwsss try` starts without
        return False
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return False
    return not ray.get_runtime_context().get_accelerator_ids().get("GPU")


def _open_clip_model(spec: ModelSpec) -> nn.Module:
    import open_clip

    assert spec.model, spec
    assert spec.weights, spec
    source = spec.weights if _is_tag(spec) else str(weights_file(spec))
    try:
        return open_clip.create_model(spec.model, pretrained=source)
    except Exception as error:  # there are many kinds of files, and each has an error of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"clip.weights {spec.weights} could not be loaded as {spec.model}: {reason}") from None


def _registered_sam(spec: ModelSpec) -> nn.Module:
    from segment_anything import sam_model_registry

    sam = sam_model_registry[str(spec.model)]()
    try:
        sam.load_state_dict(load_state(weights_file(spec)))
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(f"sam.weights {spec.weights} do not fit sam.model {spec.model!r}: {reason}") from None
    return sam


def _is_tag(spec: ModelSpec) -> bool:
    """Whether `weights` names one of open_clip's published checkpoints rather than a file."""
    import open_clip

    return spec.weights in open_clip.list_pretrained_tags_by_model(str(spec.model))


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


def find_factory(factory: str) -> Any:
    """The function that `package.module:function` names."""
    module_name, _, function_name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise ModelError(
            f"factory {factory!r} cannot be imported ({error}); is its folder on PYTHONPATH, on every machine?"
        ) from None
    except AttributeError:
        raise ModelError(f"factory {factory!r}: module {module_name!r} has no {function_name!r}") from None
    if not callable(function):
        raise ModelError(f"factory {factory!r} is no function")
    return function


def _call_factory(factory: str) -> nn.Module:
    import torch

    factory_function = find_factory(factory)
    # A factory may leave weights that are never used as they were initialised: the same ones in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory_function()
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"factory {factory!r} returned {type(model).__name__}, not a torch module")
    return model
