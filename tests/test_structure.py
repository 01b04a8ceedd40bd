"""The rules of the structure that a machine can check: who may import whom, no circles, no module without a caller."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"fmwsss.core": "fmwsss_core", "fmwsss.cluster": "cluster", "fmwsss.jobs": "jobs"}
FORBIDDEN = {
    "fmwsss.core": {"ray", "fsspec", "s3fs", "typer", "rich", "pydantic"},
    "fmwsss.cluster": {"typer", "pydantic"},
    "fmwsss.jobs": set(),
}
# The floors of the house, from the ground up. A module imports from its own room and from the floors below it.
FLOORS = [
    {"core.errors"},
    {"core.labels", "core.memory_errors", "core.lazy_exports", "core.vocabulary"},
    {"core.adaptive_batch", "core.resize", "core.images", "core.metrics", "core.toy"},
    {"core.clip", "core.superpixels", "core.instances"},
    {"core.class_maps", "core.seeds"},
    {"core.prompts", "core.segmenter", "core.tags"},
    {"core.schemas", "core.overlays", "core.vocabularies"},
    {"cluster.storage"},
    {"cluster.telemetry", "cluster.execution"},
    {"cluster.models"},
    {"cluster.replicas"},
    {"jobs.config"},
    {"jobs.declarations"},
    {"jobs.stages"},
    {"jobs.run_layout", "jobs.training", "jobs.notify"},
    {"jobs.review"},
    {"jobs.images"},
    {"jobs.superpixels", "jobs.seeds", "jobs.tags"},
    {"jobs.prompts", "jobs.reports"},
    {"jobs.segmenter"},
    {"jobs.exporters"},
    {"jobs.steps"},
    {"jobs.view"},
    {"jobs.commands"},
    {"jobs.api", "jobs.cli"},
    {"jobs.__main__", "jobs.pipeline"},
]
ENTRY_POINTS = {"fmwsss.jobs.api", "fmwsss.jobs.__main__", "fmwsss.jobs.pipeline", "fmwsss.core.toy.train"}
PRINTERS = {*ENTRY_POINTS, "fmwsss.core.toy.training_loop"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module that is not a package's face (`__init__`)."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join((package, *parts))] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(module: str) -> str:
    """`fmwsss.core.clip.last_block` is in the room `core.clip`."""
    return ".".join(module.split(".")[1:3])


def test_every_module_is_on_one_floor():
    rooms = [name for floor in FLOORS for name in floor]
    assert len(rooms) == len(set(rooms))
    assert {room(module) for module in MODULES} == set(rooms)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str):
    floor = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    imports = imports_of(MODULES[module])
    package = ".".join(module.split(".")[:2])
    assert not {name.partition(".")[0] for name in imports} & FORBIDDEN[package]
    own = {
        name for name in imports if name.startswith("fmwsss.") and room(name) in floor and room(name) != room(module)
    }
    above = {name for name in own if floor[room(name)] >= floor[room(module)]}
    assert not above, f"{module} (floor {floor[room(module)]}) imports {sorted(above)}"


def test_no_module_is_in_a_circle():
    imports = {module: imports_of(path) & set(MODULES) for module, path in MODULES.items()}
    while leaves := {module for module, names in imports.items() if not names & set(imports)}:
        for module in leaves:
            del imports[module]
    assert not imports, f"modules that import each other, and what imports them: {sorted(imports)}"


def test_nothing_imports_the_folders_by_their_own_names():
    for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        tops = {name.partition(".")[0] for name in imports_of(path)}
        assert not tops & set(FOLDERS.values()), f"{path.relative_to(ROOT)}: the one import name is fmwsss"


def test_private_ray_is_used_in_one_file():
    private = re.compile(r"ray\.[a-z_.]*\._(internal|private)|_internal_kv|map_batches_internal|import _internal")
    paths = [*MODULES.values(), *(ROOT / "benchmarks").rglob("*.py")]
    users = [path.stem for path in paths if private.search(path.read_text(encoding="utf-8"))]
    assert users == ["ray_compat"]


def test_core_does_not_print():
    for module, path in MODULES.items():
        if not module.startswith("fmwsss.core") or module in PRINTERS:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], module


def test_every_module_has_a_caller():
    faces = [path for folder in FOLDERS.values() for path in (ROOT / folder).rglob("__init__.py")]
    called = {name for path in [*MODULES.values(), *faces] for name in imports_of(path)}
    assert not [name for name in MODULES if name not in called and name not in ENTRY_POINTS]


def test_drivers_and_cpu_workers_need_no_torch():
    names = ["jobs.cli", "jobs.steps", "core.superpixels.masks", "core.seeds.sams", "core.images", "jobs.images.decode"]
    code = f"import sys\nfor n in {names}:\n    __import__('fmwsss.' + n)\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
