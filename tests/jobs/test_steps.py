"""What a declared stage is part of: the order of a run, commands, options, status, plan, failures, receipts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import ChangedInputs, Run
from fmwsss.jobs import steps
from fmwsss.jobs.cli import app
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.images import ingest
from fmwsss.jobs.stages import StageError
from tests.support import toy_stage

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO, SEGMENTER = str(CONFIGS / "demo.yaml"), str(CONFIGS / "demo_segmenter.yaml")
BRIGHTNESS = "statistics/brightness"
SEEDS = ["images", "superpixels", "prompts/classification", "seeds/coarse", "prompts/segmentation", "seeds/fine"]
ROUNDS = ["segmenter/round-1", "segmenter/round-1/predicted", "segmenter/round-1/refined", "segmenter/round-2"]
VALIDATION = [f"predictions/validation/{name}" for name in ("images", "predicted", "superpixels", "refined", "reports")]


def names(path: str, *overrides: str) -> list[str]:
    return [stage.name for stage in steps.stages_of(load_config(path, list(overrides)))]


def fmwsss(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages and the toy one, which is declared last although others may come after it."""
    monkeypatch.setattr(steps, "DECLARED", (*steps.DECLARED, *toy_stage.DECLARATIONS))


@pytest.fixture
def two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and the toy stage alone, so that a run takes seconds."""
    monkeypatch.setattr(steps, "DECLARED", (*toy_stage.DECLARATIONS, *ingest.DECLARATIONS))


def test_stages_come_after_what_they_read_and_only_where_they_are_asked_for() -> None:
    assert names(DEMO) == [*SEEDS, "reports"]
    cached = names(DEMO, "learn.classification.cache=input")
    assert cached == ["images", "superpixels", "features/classification", *SEEDS[2:], "reports"]
    second = names(SEGMENTER, "prompts=null", "segmenter.rounds=2")
    assert second == [*SEEDS, *ROUNDS, *VALIDATION, "reports"]
    crf = names(SEGMENTER, "predict.refine=crf", "predict.cam_weight=0")
    assert [name for name in crf if name.startswith("predictions/")] == [
        name for name in VALIDATION if not name.endswith("/superpixels")
    ]


def test_a_new_stage_has_its_place(one_more: None) -> None:
    assert names(DEMO, "random_seed=2") == [*SEEDS, BRIGHTNESS, "reports"]
    assert names(DEMO, "random_seed=1") == [*SEEDS, "reports"]
    assert BRIGHTNESS in fmwsss("--help").output


def test_a_name_means_a_stage_or_those_in_a_folder(one_more: None, capsys: pytest.CaptureFixture[str]) -> None:
    stages = steps.stages_of(load_config(SEGMENTER, ["prompts=null", "segmenter.rounds=2"]))

    def chosen(name: str) -> list[str]:
        return [stage.name for stage in steps.choose(stages, name)]

    assert chosen("seeds/fine") == ["seeds/fine"]
    assert chosen("seeds") == ["seeds/coarse", "seeds/fine"]
    assert chosen("segmenter") == ROUNDS
    assert chosen("predictions/validation") == VALIDATION
    assert chosen("features") == [], "declared, and not asked for"
    with pytest.raises(StageError, match=r"^there is no stage seed/fine, did you mean seeds/fine\? the stages of this"):
        chosen("seed/fine")
    with pytest.raises(StageError, match="there is no stage superpixel, did you mean superpixels"):
        chosen("superpixel")
    capsys.readouterr()
    assert steps.current_name("seeds/fine") == "seeds/fine"
    assert capsys.readouterr().err == ""
    old = {
        "ingest": "images",
        "propose": "superpixels",
        "encode": "features",
        "learn-classification": "prompts/classification",
        "seed-coarse": "seeds/coarse",
        "learn-segmentation": "prompts/segmentation",
        "seed-fine": "seeds/fine",
        "train": "segmenter",
        "predict": "predictions/validation",
        "evaluate": "reports",
        "preview": "reports",
        "lightness": BRIGHTNESS,
    }
    for name, new in old.items():
        assert steps.current_name(name) == new
        assert capsys.readouterr().err == f"fmwsss: {name} is called {new} now\n"


@pytest.mark.parametrize(
    ("words", "expected", "told"),
    [
        (["seeds/coarse"], "seeds/coarse", ""),
        (["seeds", "coarse"], "seeds/coarse", ""),
        (["seed", "coarse"], "seeds/coarse", "seed coarse is called seeds/coarse now"),
        (["learn", "segmentation"], "prompts/segmentation", "learn segmentation is called prompts/segmentation now"),
        (["prompts", "segmentation"], "prompts/segmentation", ""),
        (["propose"], "superpixels", "propose is called superpixels now"),
        (["evaluate"], "reports", "evaluate is called reports now"),
        (["run", "--only", "train"], "segmenter", "train is called segmenter now"),
    ],
)
def test_commands_are_the_names_of_stages(
    words: list[str], expected: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(
        steps, "run", lambda config, only, restart_from, **_: made.extend(map(steps.current_name, only))
    )
    command, options = (words[:1], words[1:]) if words[0] == "run" else (words, [])
    result = fmwsss(*command, DEMO, *options)
    assert (result.exit_code, made) == (0, [expected]), result.output
    assert result.stderr.strip() == (f"fmwsss: {told}" if told else "")


def test_what_is_no_command_is_told() -> None:
    for words in (["superpixel", DEMO], ["seeds", "corse", DEMO], ["prompts", "shaw", "RUN"]):
        result = fmwsss(*words)
        assert result.exit_code == 2
        assert "No such command" in result.stderr
    assert fmwsss("prompts", "show", "--help").exit_code == 0


@pytest.mark.timeout(300)
def test_a_stage_in_one_file_is_made_told_and_planned(two_stages: None, tmp_path: Path) -> None:
    where = [DEMO, f"run={tmp_path}/run", "dataset.num_images=3", "shard_rows=2", "random_seed=2"]
    early = fmwsss(BRIGHTNESS, *where)
    assert early.exit_code == 2
    assert f"stage {BRIGHTNESS} needs images, which is not complete" in early.stderr

    plan = fmwsss("plan", *where, "--images", "2")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in plan.output.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["images", BRIGHTNESS, "all", "1,000 images"]

    assert fmwsss("run", *where, "--only", "images").exit_code == 0
    assert fmwsss("run", *where, "--only", "statistics").exit_code == 0
    receipt = Run(Folder(f"{tmp_path}/run")).receipt(BRIGHTNESS)
    assert receipt is not None
    assert (receipt.num_rows, receipt.num_failures, receipt.inputs["scale"]) == (2, 1, 255)
    assert list(receipt.inputs["reads"]) == ["images"]

    state = json.loads(fmwsss("status", f"{tmp_path}/run", "--json").stdout)
    assert [(row["stage"], row["state"], row["done"]) for row in state["stages"]] == [
        ("images", "complete", 3), (BRIGHTNESS, "complete", 2)
    ]  # fmt: skip
    assert state["failures"] == [{"stage": BRIGHTNESS, "error_type": "ImageError", "images": 1}]
    told = fmwsss("failures", f"{tmp_path}/run", "--stage", BRIGHTNESS).output
    assert "toy-000001" in told
    assert "it is too dark" in told

    without = fmwsss(BRIGHTNESS, *where[:-1], "random_seed=1")
    assert without.exit_code == 0
    assert f"{BRIGHTNESS}: this run file asks for none" in without.stdout
    state = json.loads(fmwsss("status", f"{tmp_path}/run", "--json").stdout)
    assert [row["stage"] for row in state["stages"]] == ["images"], "what is not asked for is not missing"


def test_only_what_depends_on_a_stage_is_made_anew_with_it() -> None:
    asked = steps.stages_of(load_config(DEMO, ["labels.from=clip", "learn.classification.cache=input"]))

    def anew(name: str) -> set[str]:
        return {stage.name for stage in steps.dependants(asked, steps.choose(asked, name))}

    assert anew("images") == {stage.name for stage in asked}
    assert anew("superpixels") == {
        "superpixels", "seeds/coarse", "prompts/segmentation", "seeds/fine", "reports"
    }  # fmt: skip
    assert anew("tags/labels") == anew("superpixels") - {"superpixels"} | {"tags/labels", "prompts/classification"}
    assert anew("prompts") == {
        "prompts/classification", "prompts/segmentation", "seeds/coarse", "seeds/fine", "reports"
    }  # fmt: skip
    assert anew("seeds/fine") == {"seeds/fine", "reports"}


@pytest.mark.timeout(300)
def test_the_advice_of_changed_inputs_is_accepted(
    two_stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(DEMO, [f"run={tmp_path}/run", "dataset.num_images=3", "random_seed=2"])
    steps.run(config)
    (changed,) = toy_stage.stages(config)
    other = toy_stage.Stage(**{**vars(changed), "settings": lambda: {"scale": 1}})
    declared = toy_stage.Declaration(BRIGHTNESS, "", lambda _: [other])
    monkeypatch.setattr(steps, "DECLARED", (*ingest.DECLARATIONS, declared))
    with pytest.raises(ChangedInputs, match=r"scale: 255 -> 1; .*`fmwsss run RUN_FILE --from (\S+)`$") as caught:
        steps.run(config)
    advised = str(caught.value).rpartition("--from ")[2].strip("`")
    steps.run(config, restart_from=advised)
    receipt = Run(Folder(f"{tmp_path}/run")).receipt(BRIGHTNESS)
    assert receipt is not None
    assert receipt.inputs["scale"] == 1


def test_a_command_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    config = load_config(DEMO, [f"run={run.folder.url}"])
    stages = {stage.name: stage for stage in steps.stages_of(steps.pin_models(config)[0])}
    run.write_manifest({"config": config.model_dump(mode="json", exclude={"cluster"}), "stages": list(stages)})
    for name in ("images", "superpixels"):
        run.begin(name, {**stages[name].inputs(), "reads": {}})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    other = load_config(DEMO, [f"run={run.folder.url}", "propose.points_per_side=9", "random_seed=7"])
    with pytest.raises(ChangedInputs, match=r"propose.points_per_side: \d+ -> 9; .* --from superpixels`$"):
        steps.run(other)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")} == before
