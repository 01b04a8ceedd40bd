"""How many small faults in fmwsss_core its tests find: `python -m benchmarks.mutants --minutes 10 --seed 0`.

Each mutant is one change of one operator, constant or condition, in a copy of the checkout; the tests that mirror its
module run there. A mutant that survives is printed: a test that is missing, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = "fmwsss_core"
SWAPPED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or,
    ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.USub: ast.UAdd, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
PATIENCE_S = 900  # a mutant may loop for ever


def mutants_of(tree: ast.Module) -> Iterator[tuple[int, ast.Module]]:
    """Every mutant of a module, with the line that differs; annotations, messages and docstrings are left alone."""
    nodes = [node for node in ast.walk(tree) if not _is_left_alone(node)]
    inside = {id(child) for node in ast.walk(tree) if _is_left_alone(node) for child in ast.walk(node)}
    for number, node in enumerate(nodes):
        if id(node) in inside or _mutated(copy.deepcopy(node)) is None:
            continue
        changed = copy.deepcopy(tree)
        twin = [other for other in ast.walk(changed) if not _is_left_alone(other)][number]
        _mutated(twin)
        yield getattr(node, "lineno", 0), changed


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.arg | ast.AnnAssign | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _mutated(node: ast.AST) -> ast.AST | None:
    """The node, changed in place; None where there is nothing to change."""
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp) and type(node.op) in SWAPPED:
        node.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
        return node
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        node.ops[0] = SWAPPED[type(node.ops[0])]()
        return node
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
        return node
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 2 + 0.5
        return node
    return None


def tests_of(module: Path) -> list[str]:
    """The tests that mirror a module: of its own name, or else of its room; and those of constants."""
    folder = Path("tests", *module.parts[:-1])
    own = ROOT / folder / f"test_{module.name}"
    found = own if own.exists() else ROOT / folder
    return [str(found.relative_to(ROOT)), f"tests/{CORE}/test_constants.py"]


def main() -> None:
    """Draws mutants, runs the tests of each, prints those that live."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="of mutants, at the most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no other one is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--under", default=CORE, help="a folder or file, such as fmwsss_core/seeds")
    asked = parser.parse_args()
    under = ROOT / asked.under
    files = [under] if under.is_file() else sorted(under.rglob("*.py"))
    files = [path for path in files if path.name != "__init__.py" and "toy" not in path.parts]
    drawn = random.Random(asked.seed)
    num_killed = 0
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch, "checkout")
        shutil.copytree(ROOT, copied, symlinks=True, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        environment = {**os.environ, "PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"}
        number, began_s = 0, time.monotonic()
        while number < asked.count and time.monotonic() - began_s < 60 * asked.minutes:
            path = drawn.choice(files)
            module = path.relative_to(ROOT)
            line, tree = drawn.choice(list(mutants_of(ast.parse(path.read_text(encoding="utf-8")))) or [(0, None)])
            if tree is None:
                continue
            number += 1
            target = copied / module
            before = target.read_text(encoding="utf-8")
            target.write_text(ast.unparse(tree), encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(module)]
            try:
                is_killed = subprocess.run(
                    command, cwd=copied, env=environment, capture_output=True, timeout=PATIENCE_S
                ).returncode
            except subprocess.TimeoutExpired:
                is_killed = 1
            target.write_text(before, encoding="utf-8")
            num_killed += bool(is_killed)
            told = before.splitlines()[line - 1].strip() if line else ""
            print(f"{number}: {'killed' if is_killed else 'LIVES '} {module}:{line}  {told}", flush=True)
    print(f"{num_killed} of {number} are killed")


if __name__ == "__main__":
    main()
