"""Which parts are done again when failed images are tried again, and what `fmwsss failures` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Receipt, Run, part_name
from fmwsss.cluster.storage.retry import forget
from fmwsss.core.images import ImageError
from fmwsss.core.schemas import failure_row
from fmwsss.jobs.commands.failures import show
from fmwsss.jobs.config.load import config_of, load_config
from fmwsss.jobs.segmenter import train

ROOT = Path(__file__).parents[3]
IDS = pa.schema([("image_id", pa.string())])
READS = {
    "images": [],
    "superpixels": ["images"],
    "prompts/classification": ["images"],
    "seeds/coarse": ["images", "superpixels", "prompts/classification"],
    "prompts/segmentation": ["images", "seeds/coarse"],
    "seeds/fine": ["images", "superpixels", "prompts/segmentation"],
}


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A complete run of three shards, without failures."""
    if request.param == "local":
        folder = Folder(str(tmp_path / "run"))
    else:
        folder = Folder(request.getfixturevalue("s3_url")).child(f"failures/{tmp_path.name}")
    run = Run(folder)
    run.write_manifest({"stages": [*READS, "reports"]})
    for stage, reads in READS.items():
        run.begin(stage, {"reads": dict.fromkeys(reads, "key")})
        parts = ["prompts.safetensors"] if stage.startswith("prompts/") else [part_name(index) for index in range(3)]
        for index, part in enumerate(parts):
            if stage.startswith("prompts/"):
                run.folder.child(stage).write(part, b"")
            else:
                run.write_part(stage, part, [{"image_id": f"image-{index}"}], IDS, [])
        run.finish(Receipt(stage, {}, parts, 3, 0, 1.0, "", "", {}))
    return run


def fail(run: Run, stage: str, index: int, *ids: str) -> None:
    failures = [failure_row(image_id, stage, ImageError(f"{image_id}\x1b[31m is [bold]cut off")) for image_id in ids]
    run.write_part(stage, part_name(index), [{"image_id": f"image-{index}"}], IDS, failures)


def left(run: Run) -> dict[str, list[str]]:
    """What need not be made again; parts that are stay until there is something in their place."""
    found = {}
    for stage in READS:
        inputs = json.loads(run.folder.child(stage).read("_inputs.json")) if stage in run.stages() else {}
        there = run.folder.child(stage).list("p")
        assert there == (["prompts.safetensors"] if inputs else []) if "prompts" in stage else len(there) == 3
        found[stage] = sorted(Run(run.folder).begin(stage, {"reads": inputs["reads"]}) or []) if inputs else []
        found[stage] = there if "prompts" in stage else found[stage]
    return found


def parts(*indices: int) -> list[str]:
    return [part_name(index) for index in indices]


PROMPTS = ["prompts.safetensors"]


def test_nothing_failed_nothing_is_done_again(run: Run) -> None:
    before = run.folder.list()
    assert forget(run) == {}
    assert run.folder.list() == before


def test_the_last_stage_loses_only_its_part(run: Run) -> None:
    fail(run, "seeds/fine", 1, "a", "b")
    assert forget(run) == {"seeds/fine": 2}
    expected = {stage: PROMPTS if stage.startswith("prompts/") else parts(0, 1, 2) for stage in READS}
    assert left(run) == {**expected, "seeds/fine": parts(0, 2)}
    assert run.receipt("seeds/fine") is None
    assert run.receipt("seeds/coarse")


def test_masks_of_other_parts_stay_and_what_is_learned_from_the_images_goes(run: Run) -> None:
    fail(run, "images", 2, "a")
    assert forget(run) == {"images": 1}
    assert left(run) == {
        "images": parts(0, 1),
        "superpixels": parts(0, 1),
        "prompts/classification": [],
        "seeds/coarse": [],
        "prompts/segmentation": [],
        "seeds/fine": [],
    }
    assert all(run.receipt(stage) is None for stage in READS)


def test_failures_of_one_stage_are_tried_again_alone(run: Run) -> None:
    fail(run, "images", 0, "broken")
    fail(run, "superpixels", 1, "a")
    assert forget(run, "superpixels") == {"superpixels": 1}
    assert left(run) == {
        "images": parts(0, 1, 2),
        "superpixels": parts(0, 2),
        "prompts/classification": PROMPTS,
        "seeds/coarse": parts(0, 2),
        "prompts/segmentation": [],
        "seeds/fine": [],
    }
    assert run.receipt("images")
    assert run.failures("images").num_rows == 1


def test_labels_made_between_two_rounds_are_tried_again_and_what_was_trained_on_them(run: Run) -> None:
    config = load_config(str(ROOT / "configs" / "demo_segmenter.yaml"), ["segmenter.rounds=2"])
    names = [stage.name for stage in train.stages(config)]
    assert names == [f"segmenter/{name}" for name in ("round-1", "round-1/predicted", "round-1/refined", "round-2")]
    run.write_manifest({"stages": [*READS, *names]})
    for stage, reads in zip(names, ("seeds/fine", *names), strict=False):
        run.begin(stage, {"reads": {reads: "key"}})
        written = [] if stage in (names[0], names[3]) else parts(0, 1)
        for part in written:
            run.write_part(stage, part, [{"image_id": part}], IDS, [])
        run.folder.child(stage).write("history.json", b"")
        run.finish(Receipt(stage, {}, written, 2, 0, 1.0, "", "", {}))
    fail(run, names[1], 1, "a")
    assert forget(run, names[1]) == {names[1]: 1}
    assert [run.receipt(stage) is None for stage in names] == [False, True, True, True]
    for stage in names[1:3]:
        reads = {"reads": dict.fromkeys(run.stages()[stage], "key")}
        assert Run(run.folder).begin(stage, reads) == set(parts(0))
    assert not run.folder.child(names[3]).exists("history.json")


def test_the_table_counts_kinds_and_names_images(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    fail(run, "images", 0, "first", "second")
    fail(run, "superpixels", 1, "third")
    show(run)
    told = capsys.readouterr().out
    assert "3 failures" in told
    assert "\x1b[31m" not in told
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in told.splitlines() if line.startswith("│")]
    assert ["images", "ImageError", "2"] in rows
    assert ["third", "superpixels", "ImageError", "third\ufffd[31m is [bold]cut off"] in rows
    show(run, "seeds/fine")
    assert "no failures in seeds/fine" in capsys.readouterr().out
    run.write_manifest({"config": {}, "models": {}, "stages": ["images", "seeds/fine"], "versions": {}})
    with pytest.raises(ValueError, match=r"^seeds/fin is no stage of .*; its stages are images, seeds/fine$"):
        show(run, "seeds/fin")


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no run at .*: it has no manifest\.json"):
        config_of(Run(Folder(str(tmp_path))), None)
