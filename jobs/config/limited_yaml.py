"""YAML from strangers: as small, flat and finite as any run file."""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 24
MAX_NODES = 100_000  # aliases counted as often as they stand for something


def load_yaml(text: str) -> Any:
    """What `yaml.safe_load` makes of a text.

    Raises:
        yaml.YAMLError: it is no YAML, or larger than any run file.
    """
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"it has more than {MAX_BYTES} characters")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, yaml.YAMLError):
            raise
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Nodes below and at this one, were every alias written out."""
    if id(node) in above:
        raise yaml.YAMLError("an alias is inside of what it stands for")
    if len(above) > MAX_DEPTH:
        raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")
    if id(node) in known:
        return known[id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    count = 1 + sum(_count(child, known, (*above, id(node))) for child in children)
    if count > MAX_NODES:
        raise yaml.YAMLError(f"it has more than {MAX_NODES} values")
    known[id(node)] = count
    return count
