"""A dataset that changes after it was taken: what changed is told; what depends on it is made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import ChangedInputs, Run
from fmwsss.core.schemas import SEEDS, SUPERPIXELS
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.images import ingest, kept_superpixels, update
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, make_stage, receipt_of
from tests.jobs.images.test_ingest import DEMO
from tests.support.image_files import png

NAMES = [f"i{index:02d}" for index in range(12)]  # three shards of four

pytestmark = pytest.mark.usefixtures("cluster")


def picture(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index, name in enumerate(NAMES):
        (tmp_path / "images" / f"{name}.png").write_bytes(picture(index))
    labels = "".join(f"{name},cat\n" for name in NAMES)
    (tmp_path / "labels.csv").write_text(f"image_id,classes\n{labels}")
    return tmp_path


def config_of(root: Path, *overrides: str) -> RunConfig:
    dataset = f"dataset={{kind: folder, images: {root}/images, labels: {root}/labels.csv}}"
    vocabulary = "vocabulary={classes: [cat, dog, cow]}"
    return load_config(str(DEMO), [f"run={root}/run", dataset, vocabulary, "shard_rows=4", *overrides])


def stages_of(config: RunConfig) -> list[Stage]:
    """The stage of the images, and three that only count what they make."""

    def rows_of(stage: Stage, run: Run) -> Any:
        receipts = [receipt for name in stage.reads if (receipt := receipt_of(run, name))]
        started = begin_stage(run, stage.name, {}, receipts)
        if started.receipt:
            return started.receipt
        if stage.name == "prompts":
            run.folder.child("prompts").write("learned", b"x")
            return finish_stage(run, started, [], 1, 0)
        schema = SUPERPIXELS if stage.name == "superpixels" else SEEDS
        parts = receipts[0].parts
        for part in (part for part in parts if part not in started.done_parts):
            sha256 = dict(
                zip(*run.read_part("images", part, columns=["image_id", "sha256"]).to_pydict().values(), strict=True)
            )
            kept = kept_superpixels.kept(run, sha256.values()) if stage.of_pixels else {}
            made.extend((stage.name, name) for name, own in sha256.items() if own not in kept)
            rows = [{**dict.fromkeys(schema.names), "image_id": name} for name in sha256]
            run.write_part(stage.name, part, rows, schema, [])
        return finish_stage(run, started, parts, run.count_rows(stage.name, parts), 0)

    return [
        ingest.images_stage(config),
        Stage("superpixels", "images", ("images",), make=rows_of, of_pixels=True),
        Stage("prompts", "iterations", ("images",), make=rows_of),
        Stage("seeds", "images", ("images", "superpixels", "prompts"), make=rows_of),
    ]


made: list[tuple[str, str]] = []


def start(root: Path, *overrides: str, relearn: bool = False) -> Run:
    """What `fmwsss run` does with these stages; `made` has what was made."""
    config, run = config_of(root, *overrides), Run(Folder(f"{root}/run"))
    stages = stages_of(config)
    run.write_manifest({"stages": [stage.name for stage in stages]})
    made.clear()
    update.bring_up_to_date(config, run, stages[0], stages, relearn)
    for stage in stages:
        make_stage(stage, run, 1.0)
    kept_superpixels.forget(run)
    return run


def rows_of(run: Run) -> dict[str, dict[str, Any]]:
    receipt = run.receipt("images")
    assert receipt is not None
    return {row["image_id"]: row for part in receipt.parts for row in run.read_part("images", part).to_pylist()}


def ids_made(stage: str) -> list[str]:
    return sorted(name for own, name in made if own == stage)


def edit(root: Path, **labels: str) -> None:
    lines = (root / "labels.csv").read_text().splitlines()
    table = dict(line.split(",") for line in lines[1:]) | labels
    (root / "labels.csv").write_text("image_id,classes\n" + "".join(f"{key},{value}\n" for key, value in table.items()))


def test_nothing_new_is_nothing_made(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(root)
    assert ids_made("seeds") == ids_made("superpixels") == NAMES
    for name in NAMES:  # another time, and another order of the table: the content is the same
        os.utime(root / "images" / f"{name}.png", (1, 1))
    lines = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    capsys.readouterr()
    start(root)
    assert not made
    assert "changed" not in capsys.readouterr().out


def test_another_spelling_of_the_same_folder_is_the_same(root: Path) -> None:
    start(root)
    os.symlink(root, root / "again")
    shutil.copytree(root / "images", root / "copy")
    start(root, f"dataset.images={root}/images/")
    start(root, f"dataset.images={root}/again/images")
    start(root, f"dataset.images={root}/copy", f"dataset.labels={root}/again/labels.csv")
    assert not made


def test_a_corrected_label_costs_a_seed_and_no_superpixel(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(root)
    edit(root, i05="dog")
    run = start(root)
    assert "the dataset has changed: 1 with other labels" in capsys.readouterr().out
    assert rows_of(run)["i05"]["classes"] == ["dog"]
    assert ids_made("superpixels") == []
    assert ids_made("seeds") == NAMES[4:8]
    assert run.folder.child("prompts").exists("learned")
    start(root)
    assert not made


def test_a_replaced_image_goes_through_sam_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(root)
    (root / "images" / "i01.png").write_bytes(picture(99))
    run = start(root)
    assert "the dataset has changed: 1 replaced" in capsys.readouterr().out
    assert rows_of(run)["i01"]["image"] == picture(99)
    assert ids_made("superpixels") == ["i01"]
    assert ids_made("seeds") == NAMES[:4]


def test_new_and_gone_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(root)
    (root / "images" / "a_new.png").write_bytes(picture(50))
    edit(root, a_new="cow")
    (root / "images" / "i11.png").unlink()
    run = start(root)
    told = capsys.readouterr().out
    assert "the dataset has changed: 1 new, 1 gone" in told
    assert set(rows_of(run)) == {*NAMES[:11], "a_new"}
    assert ids_made("superpixels") == ["a_new"]
    assert ids_made("seeds") == sorted(["a_new", *NAMES[8:11]])
    assert [
        receipt.num_rows for stage in ("images", "superpixels", "seeds") if (receipt := run.receipt(stage))
    ] == 3 * [12]
    start(root)
    assert not made


@pytest.mark.parametrize(
    ("num_changed", "relearn", "is_learned"), [(1, False, False), (1, True, True), (4, False, True)]
)
def test_prompts_are_learned_anew_when_asked_or_when_much_changed(
    root: Path, num_changed: int, relearn: bool, is_learned: bool
) -> None:
    run = start(root)
    run.folder.child("prompts").write("learned", b"x of before")
    edit(root, **dict.fromkeys(NAMES[:num_changed], "dog"))
    start(root, relearn=relearn)
    assert (run.folder.child("prompts").read("learned") == b"x") is is_learned
    assert (ids_made("seeds") == NAMES) is is_learned


def test_a_dataset_that_is_gone_is_a_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(root)
    shutil.rmtree(root / "images")
    start(root)
    assert not made
    assert "the dataset can't be looked at again" in capsys.readouterr().err


def test_most_of_a_dataset_gone_is_asked_about(root: Path) -> None:
    run = start(root)
    for name in NAMES[:7]:
        (root / "images" / f"{name}.png").unlink()
    lines = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join([lines[0], *lines[8:]]) + "\n")
    with pytest.raises(StageError, match="7 of 12 images of this run are no longer in the dataset: is it whole"):
        start(root)
    assert set(rows_of(run)) == set(NAMES)


def test_other_settings_are_refused_before_anything_is_made_again(root: Path) -> None:
    run = start(root)
    edit(root, i05="dog")
    with pytest.raises(ChangedInputs, match="shard_rows: 4 -> 5"):
        start(root, "shard_rows=5")
    assert rows_of(run)["i05"]["classes"] == ["cat"]
    assert receipt_of(run, "seeds") is not None


def test_ground_truth_that_is_added_costs_nothing_but_the_images(root: Path) -> None:
    start(root)
    (root / "truth").mkdir()
    mask = np.ones((20, 30), np.uint8)
    Image.fromarray(mask).save(root / "truth" / "i00.png")
    run = start(root, f"dataset.truth={root}/truth")
    assert rows_of(run)["i00"]["truth"] is not None
    assert not made


def test_a_killed_update_is_taken_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(root)
    edit(root, i05="dog")
    (root / "images" / "i01.png").write_bytes(picture(99))
    with monkeypatch.context() as patch:
        patch.setattr("fmwsss.jobs.images.record.write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start(root)
    run = start(root)
    rows = rows_of(run)
    assert (rows["i05"]["classes"], rows["i01"]["image"]) == (["dog"], picture(99))
    assert ids_made("superpixels") == ["i01"]
    assert ids_made("seeds") == NAMES[:8]


def test_images_that_were_not_all_taken_are_compared_too(root: Path) -> None:
    config, run = config_of(root), Run(Folder(f"{root}/run"))
    stages = stages_of(config)
    run.write_manifest({"stages": ["images"]})
    ingest.run(config, run)
    run.folder.child("images").delete(["_receipt.json", run.file_of("images", "part-00002.parquet")])
    edit(root, i01="dog", i10="cow")
    update.bring_up_to_date(config, Run(run.folder), stages[0], stages, False)
    receipt = ingest.run(config, Run(run.folder))
    rows = rows_of(Run(run.folder))
    assert receipt.num_rows == 12
    assert (rows["i01"]["classes"], rows["i10"]["classes"], rows["i00"]["classes"]) == (["dog"], ["cow"], ["cat"])
