"""The house rules that a machine can check: who may import whom, and that every module is used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "fmwsss_core": {"ray", "fsspec", "s3fs", "typer", "rich", "pydantic", "cluster", "jobs"},
    "cluster": {"jobs", "typer", "pydantic"},
    "jobs": set(),
}
ENTRY_POINTS = {"jobs.cli", "jobs.pipeline", "fmwsss_core.toy.train"}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules(package: str) -> list[Path]:
    return [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    for path in modules(package):
        tops = {name.partition(".")[0] for name in imports_of(path)}
        assert not tops & FORBIDDEN[package], f"{path.relative_to(ROOT)} imports {tops & FORBIDDEN[package]}"


def test_core_does_not_print() -> None:
    for path in modules("fmwsss_core"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        is_program = 'if __name__ == "__main__":' in path.read_text()
        assert is_program or not prints, f"{path.relative_to(ROOT)} prints"


def test_every_module_has_a_caller() -> None:
    paths = [path for package in FORBIDDEN for path in modules(package)]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    called = {name for path in paths for name in imports_of(path)}
    unused = [name for name in names if name not in called and name not in ENTRY_POINTS]
    assert not unused


@pytest.mark.parametrize(
    "module",
    [
        "jobs.pipeline",
        "jobs.cli",
        "fmwsss_core.superpixels",
        "fmwsss_core.seeding",
        "fmwsss_core.images",
        "jobs.decode",
    ],
)
def test_drivers_and_cpu_workers_need_no_torch(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
