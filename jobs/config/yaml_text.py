"""The text of a run file as strict YAML: of bounded size, in UTF-8, no key twice, every alias a copy of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fmwsss.cluster.storage.redaction import redacted
from fmwsss.core.errors import InputError

# Far above any run file, and far below what takes seconds to read; every use of an alias counts.
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1 << 18, 10_000, 20
_TOO_MUCH = "is no YAML of a run file:"


class ConfigError(InputError):
    """A run file that cannot be used; one line per mistake."""


def read_file(file: Path) -> Any:
    """What a YAML file says; raises as `read_yaml`, and where the file cannot be read."""
    return read_yaml(_text_of(file), str(file))


def read_yaml(text: str, where: str) -> Any:
    """What a YAML text says.

    Args:
        text: of a run file, or a value given on the command line.
        where: begins the messages: a path or a setting.

    Raises:
        ConfigError: no YAML, a key given twice, or more of it than any run file has.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where[:100]} {_TOO_MUCH} more than {MAX_BYTES:,} bytes")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{where} {_TOO_MUCH} sections are nested more than {MAX_DEPTH} deep")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, where)
        if repeated := list(_repeated_keys(node)):
            raise ConfigError("\n".join(f"{where}: {line}" for line in repeated))
        return _written_out(loader.construct_document(node))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a date or number that there is none of, such as 2024-13-40
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is no YAML: {error}") from None


def _text_of(file: Path) -> str:
    try:
        if file.is_dir():
            raise ConfigError(f"{file} is a folder, not a run file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"no run file at {redacted(str(file))}") from None
    except OSError as error:
        raise ConfigError(f"the run file {file} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file} {_TOO_MUCH} more than {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}, line {line}: this is not UTF-8; save the file as UTF-8") from None


def _check_size(root: yaml.Node, where: str) -> None:
    """ConfigError where the settings, with every alias written out, are too many or too deep, or hold themselves."""
    known: dict[int, tuple[int, int] | None] = {}

    def size_and_depth(node: yaml.Node) -> tuple[int, int]:
        if id(node) not in known:
            known[id(node)] = None
            inner = [size_and_depth(child) for child in _children(node)]
            size, depth = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
            if size > MAX_NODES or depth > MAX_DEPTH + 1:
                raise ConfigError(
                    f"{where} {_TOO_MUCH} more than {MAX_NODES:,} values, or sections more than {MAX_DEPTH} deep, "
                    "with every alias (*) written out"
                )
            known[id(node)] = size, depth
        found = known[id(node)]
        if found is None:
            raise ConfigError(f"{where} {_TOO_MUCH} an alias (*) holds itself")
        return found

    size_and_depth(root)


def _written_out(value: Any) -> Any:
    """The same with every alias a copy of its own: an override of one use must not change another."""
    if isinstance(value, dict):
        return {key: _written_out(inner) for key, inner in value.items()}
    return [_written_out(inner) for inner in value] if isinstance(value, list) else value


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _repeated_keys(node: yaml.Node, path: str = "") -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        for child in _children(node):
            yield from _repeated_keys(child, path)
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            yield f"'{path}{name}' is given twice, in lines {lines[name]} and {line}"
        lines.setdefault(name, line)
        yield from _repeated_keys(value, f"{path}{name}.")
