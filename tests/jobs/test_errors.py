"""What a user can put right is one line and exit code 2; what is a bug of ours keeps its traceback."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmwsss.core.errors import FmwsssError, InputError
from fmwsss.core.memory_errors import told_out_of_memory
from fmwsss.jobs.cli import A_BUG, main
from tests.test_structure import MODULES, ROOT

DEMO = str(ROOT / "configs" / "demo.yaml")
# Validators of pydantic raise ValueError, which becomes one ConfigError with all that is wrong in a run file.
VALIDATORS = {f"fmwsss.jobs.config.{name}" for name in ("class_maps", "models", "prompts", "run", "seeds", "segmenter")}
# A claim that could not be renewed for an unforeseen reason; rows of ours that are not what we wrote.
BUGS = {("fmwsss.cluster.storage.driver_lock", "RuntimeError"), ("fmwsss.jobs.training.arrow_tensors", "ValueError")}
PLAIN = {"ValueError", "RuntimeError", "SystemExit", "OSError", "FileNotFoundError", "PermissionError", "Exception"}
# Caught where they are raised, or the reason of one image's failure.
INNER = {"_Broken", "NotBegun", "WorkerDied", "UnexpectedError", "FmwsssError"}


def program(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, after some code."""
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nfrom fmwsss.jobs.cli import main\nmain(sys.argv[1:])", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip


def test_no_module_raises_a_plain_error_for_a_user() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or name in VALIDATORS:
                continue
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id in PLAIN:
                assert (name, raised.id) in BUGS, f"{name}, line {node.lineno}: raise a subclass of FmwsssError"


def test_every_class_of_errors_has_the_one_root() -> None:
    classes = [
        (node.name, [ast.unparse(base) for base in node.bases])
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    rooted = {"FmwsssError", "InputError"}
    for _ in range(5):
        rooted |= {name for name, bases in classes if rooted & set(bases)}
    errors = {name for name, bases in classes if any(base.endswith(("Error", "Exception")) for base in bases)}
    assert errors - rooted == INNER - {"FmwsssError"}


def test_an_error_of_numpy_is_a_traceback_and_a_bug() -> None:
    broken = "import numpy\nfrom fmwsss.jobs import steps\nsteps.run = lambda *_, **__: numpy.zeros(2).reshape(3)"
    result = program(broken, "run", DEMO)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2:] == ["ValueError: cannot reshape array of size 2 into shape (3,)", f"fmwsss: {A_BUG}"]


def test_an_error_of_numpy_in_a_worker_is_a_traceback_of_the_worker_and_a_bug() -> None:
    broken = """
import numpy
from fmwsss.jobs import steps
from fmwsss.cluster.execution.session import session
from fmwsss.cluster.execution.shard_pipeline import Operator, map_shards
def reshape_it(block):
    return numpy.zeros(2).reshape(3)
def run(*_, **__):
    with session(None, 2):
        map_shards([{"part": "part-00000"}], [Operator(reshape_it)], lambda row: None)
steps.run = run
"""
    result = program(broken, "run", DEMO)
    assert result.returncode == 1, result.stderr
    assert "in reshape_it" in result.stderr
    assert "not done: part-00000: ValueError: cannot reshape array" in result.stderr
    assert result.stderr.splitlines()[-1] == f"fmwsss: {A_BUG}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "absent.yaml"], "no run file at absent.yaml"),
        (["run", "voc13"], "neither a run file"),
        (["run", DEMO, "seeds.fine.alpha=0"], "'seeds.fine.alpha'"),
        (["run", DEMO, "vocabulary=voc"], "vocabulary"),
        (["run", DEMO, "run=''", "dataset.num_images=4"], "a folder needs a path"),
        (["run", DEMO, "run=nowhere://x/y"], "nowhere://x/y"),
        (["run", DEMO, "--only", "seeds/fin"], "there is no stage seeds/fin"),
        (["run", DEMO, "run={tmp}/r", "dataset={kind: voc, root: {tmp}, split: val}"], "is no VOC folder"),
        (["run", DEMO, "run={tmp}/r", "dataset={kind: voc, root: {tmp}/voc, split: x}"], "there is no split 'x'"),
        (["run", DEMO, "run={tmp}/r", "clip={model: ViT-B-16, weights: {tmp}/no.pt}"], "no weights at"),
        (["run", DEMO, "run={tmp}/r", "sam={factory: 'no_such:thing'}"], "no_such"),
        (["run", DEMO, "run={tmp}/r", "cluster.address=127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["status", "{tmp}"], "there is no run at"),
        (["verify", "{tmp}"], "there is no run at"),
        (["failures", "{tmp}"], "there is no run at"),
        (["prompts", "show", "{tmp}"], "holds no run"),
        (["fetch", "vit_q"], "there are no weights called vit_q"),
        (["try", "absent.jpg", "--labels", "fisch", "--config", "demo"], "did you mean 'fish'"),
        (["try", "absent.jpg", "--labels", "fish", "--config", "demo"], "absent.jpg"),
        (["export", "{tmp}", "--size", "12"], "--size is HEIGHTxWIDTH in pixels, such as 512x672, not '12'"),
        (["status", "s3://key:secret@host/run"], "credentials"),
        (["status", "{tmp}/damaged"], "manifest.json is damaged"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voc/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Segmentation/val.txt").write_text("2007_1\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/manifest.json").write_text("{")
    with pytest.raises(SystemExit) as caught:
        main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    told = capsys.readouterr().err
    assert (caught.value.code, len(told.splitlines())) == (2, 1), told
    assert told.startswith("fmwsss: ")
    assert words in told


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_TMPDIR": "{tmp}/" + "long" * 25}, "give Ray a shorter folder by RAY_TMPDIR"),
        ({"RAY_TMPDIR": "/proc/nowhere"}, "by RAY_TMPDIR"),
        ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}, "set PYTHONUTF8=1"),
        ({"FMWSSS_LEASE_S": "a minute"}, "FMWSSS_LEASE_S='a minute'"),
        ({"FMWSSS_PATIENCE_S": "-1"}, "a number of seconds above 0"),
    ],
)
def test_what_a_machine_lacks_at_the_start_is_one_line(environment: dict[str, str], words: str, tmp_path: Path) -> None:
    told = {key: value.replace("{tmp}", str(tmp_path)) for key, value in environment.items()}
    (tmp_path / ("long" * 25)).mkdir()
    result = program("", "run", DEMO, f"run={tmp_path}/run", "dataset.num_images=2", RAY_ADDRESS="local", **told)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"HOME": "{tmp}/no/home", "XDG_CACHE_HOME": ""},
        pytest.param({"HOME": "/proc/nowhere", "XDG_CACHE_HOME": ""}, marks=pytest.mark.long),
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.long),
        {"TMPDIR": "{tmp}/" + "long" * 25},
    ],
    ids=["optimised", "no home", "home that can't be made", "C locale", "long TMPDIR"],
)
def test_a_run_works_or_says_in_one_line_what_the_machine_lacks(environment: dict[str, str], tmp_path: Path) -> None:
    told = {key: value.replace("{tmp}", str(tmp_path)) for key, value in environment.items()}
    (tmp_path / ("long" * 25)).mkdir()
    words = ["run", DEMO, f"run={tmp_path}/run", "dataset.num_images=2", "propose.points_per_side=4"]
    # Ray takes TMPDIR where it has no folder of its own.
    own = "import os; os.environ.pop('RAY_TMPDIR', None)" if "TMPDIR" in told else ""
    result = program(own, *words, "--only", "images", "--only", "superpixels", RAY_ADDRESS="local", **told)
    if result.returncode == 0:
        receipt = json.loads((tmp_path / "run/superpixels/_receipt.json").read_text())
        assert (receipt["num_rows"], receipt["num_failures"]) == (2, 0)
    else:
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert result.stderr.startswith("fmwsss: ")


def test_out_of_memory_is_told_and_nothing_else() -> None:
    with pytest.raises(InputError) as told, told_out_of_memory("give less"):
        raise RuntimeError("CUDA out of memory")
    assert str(told.value) == "out of memory (CUDA out of memory): give less"
    with pytest.raises(RuntimeError) as caught, told_out_of_memory("give less"):
        raise RuntimeError("a shape")
    assert not isinstance(caught.value, FmwsssError)
