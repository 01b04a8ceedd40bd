"""Public functions say what each of two or more arguments is, and what they raise."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.test_structure import FLOORS, MODULES, room

ROOMS = [name for floor in FLOORS for name in floor]


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Public functions, and public methods of public classes."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        # The docstring of a command is its help, where each argument has its own.
        if not any("command(" in ast.unparse(decorator) for decorator in node.decorator_list):
            yield node


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What is below a function, without the functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from own_nodes(child)


def without_arguments(tree: ast.AST) -> list[str]:
    """Names of public functions and methods of two arguments or more whose docstring has no `Args:`."""
    found = []
    for node in public_functions(tree):
        own = node.args
        names = [each.arg for each in (*own.posonlyargs, *own.args, *own.kwonlyargs) if each.arg not in ("self", "cls")]
        if len(names) > 1 and "Args:" not in (ast.get_docstring(node) or ""):
            found.append(node.name)
    return found


def without_raises(tree: ast.AST) -> list[str]:
    """Names of public functions and methods that raise an error of their own and have no `Raises:`."""
    return [
        node.name
        for node in public_functions(tree)
        if any(isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) for child in own_nodes(node))
        and "Raises:" not in (ast.get_docstring(node) or "")
    ]


def missing_in(name: str, search: Callable[[ast.AST], list[str]]) -> list[str]:
    return [
        f"{path.name}: {function}"
        for module, path in sorted(MODULES.items())
        if room(module) == name
        for function in search(ast.parse(path.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_arguments_are_described(name: str) -> None:
    missing = missing_in(name, without_arguments)
    assert not missing, f"say what the arguments are (Args: ...): {missing}"


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_errors_are_described(name: str) -> None:
    missing = missing_in(name, without_raises)
    assert not missing, f"say what is raised and when (Raises: ...): {missing}"
