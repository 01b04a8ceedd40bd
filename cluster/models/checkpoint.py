"""A weight file of any common format as tensors by name; nothing in it is executed.

safetensors; what `torch.save` writes (read with `weights_only`); TorchScript archives. State dicts may be wrapped
(`{"model": ...}`, `{"state_dict": ...}`) and their names prefixed (`module.`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmwsss.cluster.models.spec import ModelError
from fmwsss.cluster.models.torchscript import is_torchscript, read_torchscript
from fmwsss.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_NAMED = 3  # of what is missing, that is named
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.", "sam.")
# OpenAI's files have these beside the weights, and nobody else's.
_OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a weight file holds.

    Attributes:
        tensors: by name, as the network itself would name them.
        is_openai: whether its form is that of OpenAI's CLIPs, which have QuickGELU.
    """

    tensors: dict[str, Tensor]
    is_openai: bool


def read_checkpoint(path: Path, with_values: bool = True) -> Checkpoint:
    """Reads a weight file.

    Args:
        path: of the file.
        with_values: False reads names, shapes and types alone: milliseconds, however large the file.

    Raises:
        ModelError: it is none, of no known format, cut off, or holds more than tensors.
        FileNotFoundError: there is no file.
    """
    try:
        found = dict(_tensors_by_name(_read(path, with_values)))
    except (ModelError, FileNotFoundError):
        raise
    except Exception as error:  # each format has errors of its own, and a damaged file any of them
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{path} could not be read as a checkpoint of weights: {reason}") from None
    if not found:
        raise ModelError(f"{path} could not be read as a checkpoint of weights: there is no tensor in it")
    entries = _OPENAI_ENTRIES & set(found)
    tensors = {name: tensor for name, tensor in found.items() if name not in _OPENAI_ENTRIES}
    return Checkpoint(tensors, is_openai=entries == _OPENAI_ENTRIES)


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name; raises as `read_checkpoint`."""
    return read_checkpoint(path).tensors


def demand_fit(network: nn.Module, given: Mapping[str, Tensor], what: str, optional: tuple[str, ...] = ()) -> None:
    """Whether the tensors of a file are those of a network.

    Args:
        network: on any device; `meta` will do.
        given: by name.
        what: begins the message: which file, which network.
        optional: beginnings of names that may be missing or left over.

    Raises:
        ModelError: names are missing, unknown, or of another shape; the message counts them and names a few.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in given and not name.startswith(optional)]
    unknown = [name for name in given if name not in own and not name.startswith(optional)]
    shapes = [
        f"{name} ({_shape(given[name])} in the file, {_shape(tensor)} in the network)"
        for name, tensor in own.items()
        if name in given and given[name].numel() + tensor.numel() > 2 and given[name].shape != tensor.shape
    ]
    told = [
        f"{len(names)} {kind} ({', '.join(names[:NUM_NAMED])}{', ...' if len(names) > NUM_NAMED else ''})"
        for kind, names in (("missing", missing), ("unexpected", unknown), ("of another shape", shapes))
        if names
    ]
    if told:
        raise ModelError(f"{what}: {'; '.join(told)}{_whose(given)}")


def fill(network: nn.Module, given: Mapping[str, Tensor], what: str, optional: tuple[str, ...] = ()) -> None:
    """Copies the tensors of a file into a network, in the network's own precision; raises as `demand_fit`.

    Args:
        network: changed in place.
        given: tensors by the network's own names.
        what: the model, for the message.
        optional: beginnings of names that the file may lack.
    """
    demand_fit(network, given, what, optional)
    own = network.state_dict()
    network.load_state_dict(
        {name: tensor.reshape(own[name].shape) for name, tensor in given.items() if name in own}, strict=False
    )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _whose(given: Mapping[str, Any]) -> str:
    """A hint for files that are of another program's network."""
    if any(name.startswith(("vision_model.", "text_model.", "vision_encoder.")) for name in given):
        return "; these are names of `transformers`: give the file that the model's authors published"
    return ""


def _read(path: Path, with_values: bool) -> Any:
    import torch

    with path.open("rb") as source:
        start = source.read(512)
    if not start:
        raise InputError("the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise InputError("it is a pointer of Git LFS, not the file itself (`git lfs pull` fetches it)")
    if start.lstrip().startswith(b"<"):
        raise InputError("it is a web page; what was downloaded is not the file itself")
    if start[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise InputError("the file is cut off or damaged: it has a beginning and no end")
        with zipfile.ZipFile(path) as archive:
            if is_torchscript(archive):
                return read_torchscript(path, with_values)
        # Mapped, not read: without its values only its description is looked at.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if start[8:9] == b"{":
        return _read_safetensors(path, with_values)
    # What `torch.save` wrote before 2020; too old to be mapped.
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path, with_values: bool) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    with path.open("rb") as source:
        num_bytes = int.from_bytes(source.read(8), "little")
        if num_bytes > path.stat().st_size:
            raise InputError("the file is cut off or damaged")
        header = json.loads(source.read(num_bytes))
    header.pop("__metadata__", None)
    end = 8 + num_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != path.stat().st_size:
        raise InputError(f"the file has {path.stat().st_size} bytes and should have {end}: it is cut off or damaged")
    if with_values:
        return load_file(path)
    return {
        name: torch.empty(entry["shape"], dtype=getattr(torch, _SAFETENSORS_DTYPES[entry["dtype"]]), device="meta")
        for name, entry in header.items()
    }


def _tensors_by_name(raw: Any) -> dict[str, Tensor]:
    import torch

    while isinstance(raw, Mapping) and (
        wrapper := next((name for name in _WRAPPERS if isinstance(raw.get(name), Mapping)), None)
    ):
        raw = raw[wrapper]
    if not isinstance(raw, Mapping):
        raise InputError(f"it holds a {type(raw).__name__}, not tensors by name")
    # OpenAI's entries may be plain numbers.
    kept = {str(name): value for name, value in raw.items()}
    tensors = {
        name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in kept.items()
        if isinstance(value, torch.Tensor) or (name.rpartition(".")[2] in _OPENAI_ENTRIES and isinstance(value, int))
    }
    while tensors and (prefix := next((own for own in _PREFIXES if all(n.startswith(own) for n in tensors)), None)):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
