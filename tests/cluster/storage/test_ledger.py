"""A run's memory: what is complete, what is written, what failed, on a disk and on a real S3 server."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from fmwsss.cluster.storage import receipts
from fmwsss.cluster.storage.driver_lock import RunInUse
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import ChangedInputs, Receipt, Run, part_index, part_name
from fmwsss.cluster.storage.receipts import StageFile
from fmwsss.core.schemas import FAILURES, failure_row

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int32())])
IMAGE_SCHEMA = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
INPUTS = {"sam": {"model": "vit_h", "sha256": "ab"}, "thresholds": [0.5, 0.7], "seed": 0}


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    if request.param == "local":
        return Run(Folder(str(tmp_path / "run")))
    return Run(Folder(request.getfixturevalue("s3_url")).child(f"ledger/{tmp_path.name}"))


def receipt_of(stage: str) -> Receipt:
    return Receipt(
        stage, INPUTS, [part_name(0)], 2, 1, 1.5, "2026-01-01T00:00:00Z", "2026-01-01T00:00:02Z", {"ray": "2"}
    )


def fill(run: Run, stage: str, index: int, failed: tuple[str, ...] = ()) -> None:
    rows = [{"image_id": f"image-{index}", "value": index}]
    failures = [failure_row(name, stage, ValueError("bad")) for name in failed]
    run.write_part(stage, part_name(index), rows, SCHEMA, failures)


def test_a_stage_begins_goes_on_and_ends(run: Run) -> None:
    stage = "seeds/coarse"
    assert run.begin(stage, INPUTS) == set()
    fill(run, stage, 0)
    fill(run, stage, 3, failed=("x", "y"))
    run.folder.child(stage).write_many({"png/part-00007.parquet": b"", "png/image-0.png": b""})
    assert run.begin(stage, json.loads(json.dumps(INPUTS))) == {part_name(0), part_name(3)}
    assert run.receipt(stage) is None
    run.finish(receipt_of(stage))
    assert pickle.loads(pickle.dumps(run)).receipt(stage) == receipt_of(stage)
    assert run.receipt("seeds/fine") is None


def test_changed_inputs_are_named_with_both_values(run: Run) -> None:
    run.begin("superpixels", INPUTS)
    changed = {"sam": {"model": "vit_b", "sha256": "ab"}, "thresholds": [0.5, 0.8], "extra": {"on": True}}
    with pytest.raises(ChangedInputs) as caught:
        run.begin("superpixels", changed)
    text = str(caught.value)
    for change in (
        'sam.model: "vit_h" -> "vit_b"',
        "thresholds: [0.5, 0.7] -> [0.5, 0.8]",
        "extra.on: (not set) -> true",
        "seed: 0 -> (not set)",
    ):
        assert change in text
    assert "sha256" not in text
    assert "use another run folder, or start again from there: `fmwsss run RUN_FILE --from superpixels`" in text
    assert len(text.splitlines()) == 1


def test_parts_without_inputs_are_not_trusted(run: Run) -> None:
    fill(run, "images", 0)
    assert run.begin("images", INPUTS) == set()


def test_failures_are_written_before_their_part_and_counted_with_it(run: Run) -> None:
    fill(run, "images", 0, failed=("a",))
    fill(run, "seeds/fine", 0, failed=("b", "c"))
    # A task that was killed between the two: told again when its part is done again.
    run.folder.child("failures/images").write_table(
        "part-00001.parquet", [failure_row("d", "images", ValueError("x"))], FAILURES
    )
    assert run.failures("images")["image_id"].to_pylist() == ["a"]
    assert run.failures("seeds/fine")["image_id"].to_pylist() == ["b", "c"]
    assert run.failures("seeds").num_rows == 0
    assert run.failures().num_rows == 4
    assert run.failures("superpixels").schema.equals(FAILURES)


def test_an_image_that_succeeds_the_second_time_is_no_failure(run: Run) -> None:
    fill(run, "images", 0, failed=("a",))
    fill(run, "images", 0)
    assert run.failures("images").num_rows == 0


def test_the_same_part_has_the_same_bytes(run: Run) -> None:
    for stage in ("one", "two"):
        fill(run, stage, 0)
    assert run.folder.read("one/part-00000.parquet") == run.folder.read("two/part-00000.parquet")


def test_reset_deletes_one_stage_and_its_failures(run: Run) -> None:
    for stage in ("seeds/coarse", "seeds/fine"):
        run.begin(stage, INPUTS)
        fill(run, stage, 0, failed=("a",))
        run.finish(receipt_of(stage))
    run.reset("seeds/coarse")
    assert run.receipt("seeds/coarse") is None
    assert run.failures("seeds/coarse").num_rows == 0
    assert run.folder.child("seeds/coarse").list() == []
    assert run.begin("seeds/coarse", {"other": 1}) == set()
    assert run.receipt("seeds/fine") == receipt_of("seeds/fine")
    assert run.failures("seeds/fine").num_rows == 1


def test_a_reset_that_was_killed_keeps_the_parts_bound_to_their_inputs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.begin("images", INPUTS)
    for index in range(3):
        fill(run, "images", index)
    run.finish(receipt_of("images"))
    real_delete = Folder.delete
    num_left = 2

    def dying_delete(folder: Folder, names: list[str]) -> None:
        nonlocal num_left
        if num_left == 0:
            raise KeyboardInterrupt
        num_left -= 1
        real_delete(folder, names)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", dying_delete)
        with pytest.raises(KeyboardInterrupt):
            run.reset("images")
    assert run.receipt("images") is None
    with pytest.raises(ChangedInputs):
        run.begin("images", {"other": 1})
    run.reset("images")
    assert run.folder.list() == []


def test_the_manifest_comes_back(run: Run) -> None:
    assert run.manifest() is None
    run.write_manifest({"config": {"run": "x", "names": ["ä", "b"]}, "versions": {"ray": "2.60"}})
    assert run.manifest() == {"config": {"run": "x", "names": ["ä", "b"]}, "versions": {"ray": "2.60"}}


def test_part_names_sort_and_come_back() -> None:
    assert part_name(12) == "part-00012.parquet"
    assert [part_index(part_name(index)) for index in (0, 12, 123456)] == [0, 12, 123456]


def test_a_task_of_a_replaced_driver_with_other_settings_writes_where_nobody_reads(run: Run) -> None:
    stage, part = "superpixels", part_name(0)
    run.begin(stage, {"points": 24})
    of_first = pickle.loads(pickle.dumps(run))  # as a worker has it
    second = Run(run.folder)
    second.reset(stage)
    second.begin(stage, {"points": 6})
    file = second.write_part(stage, part, [{"image_id": "x", "value": 6}], SCHEMA, [])
    second.accept(stage, part, file)
    second.finish(replace(receipt_of(stage), inputs={"points": 6}, files=second.files_of(stage, [part])))
    of_first.write_part(stage, part, [{"image_id": "x", "value": 24}], SCHEMA, [failure_row("y", stage, ValueError())])
    for reader in (second, Run(run.folder)):
        assert reader.read_part(stage, part)["value"].to_pylist() == [6]
        assert reader.parts(stage) == [part]
        assert reader.failures(stage).num_rows == reader.failures().num_rows == 0
        receipt = reader.receipt(stage)
        assert receipt is not None
        assert [stage_file.name for stage_file in receipt.files] == [file.name]
        reader.demand_whole(receipt)


def test_a_part_that_is_there_stays_as_it_is(run: Run) -> None:
    run.begin("images", INPUTS)
    first = run.write_part("images", part_name(0), [{"image_id": "a", "value": 1}], SCHEMA, [])
    second = run.write_part("images", part_name(0), [{"image_id": "a", "value": 2}], SCHEMA, [])
    assert first == second
    assert run.read_part("images", part_name(0))["value"].to_pylist() == [1]


def test_what_is_made_again_stays_until_it_is(run: Run) -> None:
    run.begin("images", INPUTS)
    for index in range(2):
        fill(run, "images", index, failed=("a",))
    run.finish(receipt_of("images"))
    run.do_again("images", [part_name(1)])
    again = Run(run.folder)
    assert again.receipt("images") is None
    assert again.begin("images", INPUTS) == {part_name(0)}
    assert again.read_part("images", part_name(1))["value"].to_pylist() == [1]
    assert again.failures("images").num_rows == 1
    again.write_part("images", part_name(1), [{"image_id": "b", "value": 5}], SCHEMA, [])
    assert again.read_part("images", part_name(1))["value"].to_pylist() == [5]
    again.finish(receipt_of("images"))
    assert again.folder.child("images").list("_") == ["_inputs.json", "_receipt.json"]


def test_a_receipt_of_a_newer_release_is_read(run: Run) -> None:
    told = json.loads(receipt_of("images").to_json()) | {"mood": "good"}
    told["files"] = [{"name": "part-00000.parquet", "rows": 1, "bytes": 2, "sha256": "ab", "colour": "red"}]
    told["sum"] = receipts._sum_of(told)
    run.folder.write("images/_receipt.json", json.dumps(told).encode())
    receipt = run.receipt("images")
    assert receipt is not None
    assert receipt.files == [StageFile("part-00000.parquet", 1, 2, "ab")]


def test_images_are_stored_once(tmp_path: Path) -> None:
    run, noise = Run(Folder(str(tmp_path))), os.urandom(1 << 20)
    file = run.write_part("images", part_name(0), [{"image_id": "a", "image": noise}], IMAGE_SCHEMA, [])
    assert file.bytes < 1.1 * len(noise)


def test_each_start_of_a_stage_has_a_timeline_of_its_own(run: Run):
    assert run.timeline() == []
    run.folder.write("timeline.json", b'[\n{"name": "of an earlier release"}\n]\n')
    run.add_timeline("seeds/coarse", [{"name": "first"}, {"name": "second"}])
    run.add_timeline("seeds/fine", [])
    run.add_timeline("seeds/coarse", [{"name": "third"}])
    assert run.folder.list("timeline/") == ["timeline/seeds-coarse-0.json", "timeline/seeds-coarse-1.json"]
    assert [event["name"] for event in run.timeline()] == ["of an earlier release", "first", "second", "third"]
    assert json.loads(run.folder.read("timeline/seeds-coarse-1.json")) == [{"name": "third"}]
    run.folder.write("timeline/seeds-coarse-1.json", b"half of")
    assert len(run.timeline()) == 3


def test_a_receipt_of_a_driver_that_was_replaced_is_none(run: Run) -> None:
    stage = "prompts/classification"
    run.begin(stage, INPUTS)
    second = Run(run.folder)
    second.begin(stage, INPUTS)
    # It stood still between the look at its attempt and the request.
    late = replace(receipt_of(stage), attempt=json.loads(run.folder.read(f"{stage}/_inputs.json"))["_attempt"])
    third = Run(run.folder)
    third.begin(stage, INPUTS)
    run.folder.write(f"{stage}/_receipt.json", late.to_json())
    assert Run(run.folder).receipt(stage) is None
    third.finish(replace(receipt_of(stage), num_rows=7))
    for other in (run, second):
        with pytest.raises(RunInUse, match="begun anew by another driver"):
            other.finish(receipt_of(stage))
    receipt = Run(run.folder).receipt(stage)
    assert receipt is not None
    assert receipt.num_rows == 7
    assert Run(run.folder).begin(stage, INPUTS) == {part_name(0)}


def test_a_receipt_that_comes_after_a_retry_was_asked_for_is_none(run: Run) -> None:
    run.begin("images", INPUTS)
    fill(run, "images", 0)
    Run(run.folder).do_again("images", [part_name(0)])
    with pytest.raises(RunInUse, match="begun anew by another driver"):
        run.finish(receipt_of("images"))
    assert Run(run.folder).begin("images", INPUTS) == set()


def test_some_images_of_a_part_are_made_again_and_the_others_keep_their_rows(run: Run) -> None:
    part = part_name(0)
    run.begin("images", INPUTS)
    old = [{"image_id": name, "value": 1} for name in "abc"]
    run.write_part("images", part, old, SCHEMA, [failure_row(name, "images", ValueError("bad")) for name in "xy"])
    run.finish(receipt_of("images"))
    Run(run.folder).do_again("images", [part], {part: {"b"}})
    Run(run.folder).do_again("images", [part], {part: {"x"}})
    again = Run(run.folder)
    assert again.begin("images", INPUTS) == set()
    assert again.images_again("images", part) == {"b", "x"}
    new = [{"image_id": name, "value": 2} for name in "abcx"]
    again.write_part("images", part, new, SCHEMA, [failure_row("y", "images", ValueError("worse"))])
    made = {row["image_id"]: row["value"] for row in again.read_part("images", part).to_pylist()}
    assert made == {"a": 1, "b": 2, "c": 1, "x": 2}
    assert again.num_failures_of("images", part) == 1
    # Whoever asks for the whole part, before or after, gets it.
    Run(run.folder).do_again("images", [part])
    Run(run.folder).do_again("images", [part], {part: {"b"}})
    whole = Run(run.folder)
    whole.begin("images", INPUTS)
    assert whole.images_again("images", part) is None
