"""The tensors of a TorchScript archive (OpenAI publishes its CLIPs so), without running anything of it.

`torch.jit.load` compiles the program in the archive and runs the `__setstate__` of its modules. Here the description of
the modules is read instruction by instruction: names stay text, nothing is imported, called or compiled.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmwsss.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_ATTRIBUTES = re.compile(r"class (\w+)\(Module\):\s+__parameters__ = \[(.*?)\]\s+__buffers__ = \[(.*?)\]", re.DOTALL)


class _Mark:
    """Where the items of a tuple, a list or a dictionary begin on the stack."""


@dataclass(frozen=True)
class _Name:
    """A class or a function, as text."""

    text: str


@dataclass
class _Module:
    """A module of the archive: its class and what it holds."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip file is a TorchScript archive rather than what `torch.save` writes."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path, with_values: bool) -> dict[str, Tensor]:
    """Parameters and buffers by name, as `torch.jit.load(path).state_dict()` has them.

    Args:
        path: the archive.
        with_values: False gives tensors of the device `meta`: shapes and types, for a few milliseconds.

    Raises:
        ValueError: it holds something else than modules of tensors.
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        storages: dict[str, Any] = {}

        def tensor(storage: tuple[str, str], offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
            """One tensor of the archive.

            Args:
                storage: name of its kind in torch, and its file in the archive.
                offset: of its first number in the storage, in numbers.
                size: length of each axis.
                stride: numbers between neighbours along each axis.
            """
            import torch

            kind, key = storage
            dtype = getattr(torch, _DTYPES[kind.removeprefix("torch.").removesuffix("Storage")])
            if not with_values:
                return torch.empty(size, dtype=dtype, device="meta")
            if key not in storages:
                data = bytearray(archive.read(f"{root}/data/{key}"))
                storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return torch.as_strided(storages[key], size, stride, offset)

        top = _interpret(archive.read(f"{root}/data.pkl"), tensor)
        if not isinstance(top, _Module):
            raise InputError("the archive holds no module")
        sources = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    found: dict[str, Tensor] = {}
    _collect(top, "", {name.removeprefix(f"{root}/code/"): text for name, text in sources.items()}, found)
    return found


_DTYPES = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
}  # fmt: skip


def _collect(module: _Module, prefix: str, sources: dict[str, str], found: dict[str, Tensor]) -> None:
    import torch

    declared = _declared(module.kind, sources)
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", sources, found)
        elif isinstance(value, torch.Tensor) and (declared is None or name in declared):
            found[prefix + name] = value


def _declared(kind: str, sources: dict[str, str]) -> set[str] | None:
    """Which attributes the source of a class declares as parameters and buffers; None where it does not say."""
    module, _, name = kind.rpartition(".")
    for declaration in _ATTRIBUTES.finditer(sources.get(module.replace(".", "/") + ".py", "")):
        if declaration[1] == name:
            return set(re.findall(r'"([^"]*)"', declaration[2] + declaration[3]))
    return None


def _interpret(data: bytes, tensor: Any) -> Any:
    """The object that a description stands for; of TorchScript's few instructions alone."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = max(index for index, item in enumerate(stack) if isinstance(item, _Mark))
        items = stack[at + 1 :]
        del stack[at:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_Mark())
            case "GLOBAL":
                stack.append(_Name(str(argument).replace(" ", ".")))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode.name])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "LIST":
                stack.append(since_mark())
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])
            case "BINPERSID":
                _, kind, key, *_ = stack.pop()
                stack.append((kind.text, str(key)))
            case "NEWOBJ":
                stack.pop()
                stack.append(_Module(stack.pop().text))
            case "BUILD":
                state = stack.pop()
                owner = stack[-1]
                if isinstance(owner, _Module) and isinstance(state, dict):
                    owner.attributes = state
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_reduced(stack.pop().text, arguments, tensor))
            case other:
                raise InputError(f"the archive has an instruction that TorchScript does not write ({other})")
    raise InputError("the archive's description is cut off")


def _reduced(name: str, arguments: tuple[Any, ...], tensor: Any) -> Any:
    """What the few functions that TorchScript names would return; nothing for any other."""
    if name == "torch._utils._rebuild_tensor_v2":
        return tensor(*arguments[:4])
    if name.startswith("torch.jit._pickle."):  # lists and dictionaries with the types of their items
        return arguments[0]
    return {} if name == "collections.OrderedDict" else None
