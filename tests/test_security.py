"""Nothing of a dataset, a checkpoint or a run is executed; a local Ray is for its owner alone.

More of it stands with what it belongs to: pickles as SAM's weights in cluster/test_models.py, YAML in
jobs/test_config.py, limits of images in fmwsss_core/test_images.py, ids as paths in jobs/test_datasets.py and
cluster/test_storage.py, HTML in test_pipeline.py, tokens of `ray up` and of jobs in test_ray_job.py.
"""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.cluster.storage.redaction import redacted
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.schemas import IMAGES
from fmwsss.core.vocabularies import custom_vocabulary
from fmwsss.jobs import cli
from fmwsss.jobs.commands.show_prompts import show
from fmwsss.jobs.config.load import ConfigError, config_of, load_config
from fmwsss.jobs.stages import begin_stage, finish_stage
from fmwsss.jobs.training.checkpoint import CHECKPOINT_FILE, restore

ROOT = Path(__file__).parents[1]
# CLIP-ES and IRN save their maps as pickled arrays (fmwsss_core/class_maps/test_given_maps.py tries to harm it).
READER_OF_ARRAYS = ROOT / "fmwsss_core/class_maps/given_maps.py"
DEMO = str(ROOT / "configs" / "demo.yaml")


class Harm:
    """Writes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_code_in_weights_of_clip_is_not_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Harm(tmp_path / "harmed")}, tmp_path / "w.pt")
    with pytest.raises(ModelError):
        load_clip(ModelSpec(model="ViT-B-16", weights=str(tmp_path / "w.pt")))
    assert not (tmp_path / "harmed").exists()


def test_code_in_a_run_is_not_executed(tmp_path: Path) -> None:
    clip = load_clip(ModelSpec(model="toy"))
    harm = pickle.dumps(Harm(tmp_path / "harmed"))
    with pytest.raises(ValueError):
        PromptLearner.from_bytes(clip, custom_vocabulary(["cat"]), harm)
    torch.save(Harm(tmp_path / "harmed"), tmp_path / CHECKPOINT_FILE)
    with pytest.raises(pickle.UnpicklingError):
        restore(Folder(str(tmp_path)), None, None)  # type: ignore[arg-type] - never reached
    assert not (tmp_path / "harmed").exists()


def test_a_factory_in_a_manifest_is_not_called(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    config = load_config(DEMO, ["clip={factory: 'fmwsss.core.toy.models:toy_clip'}"])
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"})})
    with pytest.raises(ValueError, match="say which run file names it: --config RUN_FILE"):
        config_of(run, None)


def test_prompts_of_a_stranger_call_no_factory(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    config = load_config(DEMO, ["clip={factory: 'fmwsss.core.toy.models:toy_clip'}"])
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"}), "stages": []})
    with pytest.raises(ValueError, match="say which run file names it: --config RUN_FILE"):
        show(run.folder.url, None, 3)


@pytest.mark.parametrize("key", ["clip", "sam"])
def test_an_address_of_weights_in_a_manifest_is_not_asked(key: str, tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    model = {"clip": "ViT-B-16", "sam": "vit_b"}[key]
    weights = f"{{model: {model}, weights: 'https://stranger.example/w.pt', sha256: '{'0' * 64}'}}"
    config = load_config(DEMO, [f"{key}={weights}"])
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"})})
    with pytest.raises(ValueError, match=f"they are fetched only if you say so, by {key}.weights="):
        config_of(run, None)
    with pytest.raises(ValueError, match="they are fetched only if you say so"):
        config_of(run, [f"{key}.sha256={'a' * 64}"])
    assert getattr(config_of(run, [f"{key}.weights=/here/w.pt"]), key).weights == "/here/w.pt"
    assert config_of(run, [f"{key}={weights}"])


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("dataset.images", "dataset={kind: folder, images: 's3://stranger/x', labels: /here/l.csv}"),
        ("dataset.labels", "dataset={kind: folder, images: /here, labels: 'https://stranger.example/l.csv'}"),
        ("proposals", "proposals=s3://stranger/shared"),
        ("prompts", "prompts=https://stranger.example/run"),
    ],
)
def test_no_address_of_a_manifest_is_asked(key: str, override: str, tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    config = load_config(DEMO, [override, *(["vocabulary={classes: [cat]}"] if "dataset" in key else [])])
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"}), "stages": []})
    with pytest.raises(ValueError, match=f"it is asked only if you say so, by {key}=") as caught:
        config_of(run, None)
    assert len(str(caught.value).splitlines()) == 1
    # Of a command that reads none of it, and of one that is told.
    assert config_of(run, None, unread=(key.partition(".")[0],)).run == run.folder.url
    assert config_of(run, [override]).run == run.folder.url


def test_a_manifest_names_no_cluster(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    config = load_config(DEMO).model_dump(mode="json", exclude={"cluster"})
    run.write_manifest({"config": {**config, "cluster": {"address": "ray://attacker.example:10001"}}})
    with pytest.raises(ValueError, match="has settings of a cluster, which ours never have") as caught:
        config_of(run, ["cluster.address=localhost:1"])
    assert len(str(caught.value).splitlines()) == 1
    run.write_manifest({"config": config})
    assert config_of(run, ["cluster.address=localhost:1"]).cluster.address == "localhost:1"


def test_a_factory_that_an_override_names_is_the_readers_own(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    config = load_config(DEMO, ["clip={factory: 'fmwsss.core.toy.models:toy_clip'}"])
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"})})
    ours = "clip.factory=fmwsss.core.toy.models:toy_clip"
    assert config_of(run, [ours]).clip.factory == "fmwsss.core.toy.models:toy_clip"
    with pytest.raises(ValueError, match="--config RUN_FILE"):
        config_of(run, ["sam.model=toy"])


def _doubled(kind: str) -> str:
    lists = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return lists if kind == "lists" else lists.replace("[", "{k: [").replace("]", "]}")


@pytest.mark.parametrize(
    "text",
    [
        _doubled("lists"), _doubled("mappings"), "run: &r {x: *r}\n", "run: " + "[" * 3000 + "]" * 3000,
        "run: " + "{a: " * 200 + "1" + "}" * 200, "run: " + "x" * (2 << 20), "run: a\0b\n",
        "run: !!python/object/apply:os.system ['true']\n",
    ],
)  # fmt: skip
def test_yaml_is_small_flat_and_finite(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no YAML") as caught:
        load_config(str(path))
    assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError):
        load_config(DEMO, [f"run={text.partition(': ')[2]}"])


@pytest.mark.parametrize(
    "address",
    [
        "https://user:SECRET@host/x", "s3://KEY:SECRET@bucket/run", "https://host/x?X-Amz-Signature=SECRET",
        "zip://x::https://user:SECRET@host/x.zip", "https://us@er:SECRET@host/x", "https://SECRET@host",
    ],
)  # fmt: skip
def test_no_message_repeats_a_secret(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "SECRET" not in redacted(f"can't read '{address}': it is gone")
    assert "host" in redacted(address) or "bucket" in redacted(address)
    for override in (f"proposals={address}", f'segmenter.backbone={{model_type: ["{address}"]}}'):
        with pytest.raises(ConfigError, match="may hold no user, password or signature") as caught:
            load_config(DEMO, [override])
        assert "SECRET" not in str(caught.value)
    with pytest.raises(ValueError, match="environment variables") as of_folder:
        Folder(address)
    assert "SECRET" not in str(of_folder.value)
    for words in (
        ["status", address],
        ["verify", address],
        ["run", address],
        ["run", DEMO, f"dataset.labels={address}"],
    ):
        with pytest.raises(SystemExit):
            cli.app(words, standalone_mode=False)
    told = capsys.readouterr()
    assert "SECRET" not in told.out + told.err


def test_an_address_without_secrets_is_told_whole() -> None:
    for text in ("s3://bucket/a@b/run", "see a@b.org", "why? because", "https://host:80/x.zip"):
        assert redacted(text) == text


def test_the_reader_of_pickled_arrays_only_derives_an_unpickler_that_looks_nothing_up() -> None:
    tree = ast.parse(READER_OF_ARRAYS.read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler", "pickle.UnpicklingError"}
    (reader,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [ast.unparse(base) for base in reader.bases] == ["pickle.Unpickler"]
    assert [node.name for node in reader.body if isinstance(node, ast.FunctionDef)] == ["find_class"]


def test_no_module_of_ours_unpickles_or_evaluates() -> None:
    forbidden = {"eval", "exec", "pickle", "dill", "joblib", "shelve", "marshal"}
    for package in ("fmwsss_core", "cluster", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                    allowed = {"pickle"} if path == READER_OF_ARRAYS else set()
                    assert not modules & forbidden - allowed, f"{path} imports {modules & forbidden}"
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in forbidden, f"{path}:{node.lineno} calls {called}"
                    words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert called != "torch.load" or words.get("weights_only") == "True", f"{path}:{node.lineno}"
                    assert called not in ("yaml.load", "yaml.unsafe_load"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("key", ["run", "dataset.images", "sam.weights"])
@pytest.mark.parametrize(
    "address",
    ["https://user:secret@host/w.pth", "https://host/w.pth?X-Amz-Signature=secret", "s3://key:secret@b/w.pth"],
)
def test_addresses_with_secrets_are_refused_before_anything_repeats_them(key: str, address: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}': an address may hold no user, password or signature") as caught:
        load_config(DEMO, [f"{key}={address}"])
    assert "secret" not in str(caught.value)


@pytest.mark.timeout(300)
def test_a_local_ray_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The token is private from its first moment on, and who has it not is turned away."""
    code = """
import os, subprocess, sys
from fmwsss.cluster.execution.session import session, token_file
import ray
with session(num_cpus=1):
    print(oct(token_file().stat().st_mode & 0o777))
    address = ray.get_runtime_context().gcs_address
    stranger = {**os.environ, "HOME": sys.argv[1], "RAY_AUTH_TOKEN": "b" * 64}
    result = subprocess.run([sys.executable, "-c", f"import ray; ray.init('{address}'); print('entered')"],
                            env=stranger, capture_output=True, text=True, timeout=120)
    print(address.startswith("127.0.0.1:"))
    print("entered" in result.stdout, "uthenticat" in result.stderr or "token" in result.stderr.lower())
"""
    (tmp_path / "owner").mkdir()
    (tmp_path / "stranger").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"HOME": str(tmp_path / "owner"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, "-c", code, str(tmp_path / "stranger")],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert result.stdout.split()[:4] == ["0o600", "True", "False", "True"], result.stderr


def test_a_terminal_is_told_nothing_that_it_would_obey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of stages, files and failures of a run that comes from a stranger."""
    evil = "seeds\x1b]0;owned\x07\u202e\x9b31m"
    run = Run(Folder(str(tmp_path / "run")))
    run.write_manifest({"config": {}, "stages": [evil], "units": {evil: "images"}})
    finish_stage(run, begin_stage(run, evil, {}, []), [], 0, 0)
    failure = dict.fromkeys(("error_type", "message", "traceback"), evil) | {"image_id": evil, "stage": evil}
    run.write_part(evil, part_name(0), [], IMAGES, [failure])
    (tmp_path / "run" / evil / "_receipt.json").write_text("{")
    for command in (["status", run.folder.url], ["failures", run.folder.url], ["verify", run.folder.url]):
        with pytest.raises(SystemExit):
            cli.main(command)
        told = "".join(capsys.readouterr())
        assert "seeds" in told
        assert not set(told) & {"\x1b", "\x07", "\u202e", "\x9b"}, command
