"""What `fmwsss verify` finds in a run, and what it does about it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.cluster.storage.storage_errors import DamagedFile
from fmwsss.core.schemas import FAILURES
from fmwsss.jobs.commands.verify import find_damage, run_command
from fmwsss.jobs.images import record
from fmwsss.jobs.stages import StageError, begin_stage, finish_stage, upstream

SEEDS = pa.schema([("image_id", pa.string()), ("seed", pa.binary())])
PARTS = [part_name(0), part_name(1)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(Folder(str(tmp_path / "run")))
    run.write_manifest({"stages": ["seeds/fine", "prompts/x"]})
    started = begin_stage(run, "seeds/fine", {}, [])
    for index, part in enumerate(PARTS):
        data = bytes([index]) * 4000
        run.folder.child("seeds/fine").write(f"png/i{index}.png", data)
        run.write_part("seeds/fine", part, [{"image_id": f"i{index}", "seed": data}], SEEDS, [])
    seeds = finish_stage(run, started, PARTS, 2, 0)
    started = begin_stage(run, "prompts/x", {}, [seeds])
    run.folder.child("prompts/x").write("prompts.safetensors", b"x" * 100)
    finish_stage(run, started, ["prompts.safetensors"], 0, 0)
    return Run(run.folder)


def flip(run: Run, name: str, share: float = 0.5) -> None:
    path = Path(run.folder.url, name)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 4
    path.write_bytes(data)


def test_a_whole_run_is_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(run, False)
    assert "every file of" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_flipped_bit_of_a_part_is_found_and_that_part_alone_is_made_again(run: Run, share: float) -> None:
    name = run.file_of("seeds/fine", PARTS[1])
    flip(run, f"seeds/fine/{name}", share)
    with pytest.raises(DamagedFile, match=r"fmwsss verify .* --mend"):
        run.read_part("seeds/fine", PARTS[1])
    (damage,) = find_damage(run)
    assert (damage.stage, damage.file, damage.part) == ("seeds/fine", name, PARTS[1])
    assert not run_command(run, True)
    again = Run(run.folder)
    assert again.begin("seeds/fine", {"reads": {}}) == {PARTS[0]}
    again.write_part("seeds/fine", PARTS[1], [{"image_id": "i1", "seed": b"\1" * 4000}], SEEDS, [])
    assert find_damage(again) == []


def test_prompts_that_changed_are_not_used_and_are_learned_again(run: Run) -> None:
    flip(run, "prompts/x/prompts.safetensors")
    with pytest.raises(DamagedFile, match=r"prompts\.safetensors is damaged; `fmwsss verify .* --mend`"):
        upstream(run, "seeds/other", ["prompts/x"])
    assert not run_command(run, True)
    with pytest.raises(StageError, match="not complete"):
        upstream(Run(run.folder), "seeds/other", ["prompts/x"])


def test_a_png_is_written_again_from_its_part(run: Run) -> None:
    flip(run, "seeds/fine/png/i0.png")
    Path(run.folder.url, "seeds/fine/png/i1.png").unlink()
    assert not run_command(run, True)
    assert run.folder.read("seeds/fine/png/i1.png") == b"\1" * 4000
    assert run_command(run, False)


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]"])
def test_a_receipt_that_is_none_is_one_line(run: Run, text: bytes) -> None:
    run.folder.write("seeds/fine/_receipt.json", text)
    with pytest.raises(DamagedFile, match=r"_receipt\.json is damaged; `fmwsss verify"):
        Run(run.folder).receipt("seeds/fine")
    assert not run_command(run, True)
    assert Run(run.folder).begin("seeds/fine", {"reads": {}}) == set(PARTS)


def test_a_part_of_an_open_stage_that_is_damaged_is_made_again(run: Run) -> None:
    run.folder.delete(["seeds/fine/_receipt.json"])
    Path(run.folder.url, "seeds/fine", run.file_of("seeds/fine", PARTS[0])).write_bytes(b"")
    again = Run(run.folder)
    assert again.begin("seeds/fine", {"reads": {}}) == {PARTS[1]}
    again.write_part("seeds/fine", PARTS[0], [{"image_id": "i0", "seed": b"\0" * 4000}], SEEDS, [])
    assert Run(run.folder).begin("seeds/fine", {"reads": {}}) == set(PARTS)


@pytest.mark.parametrize("key", ["num_rows", "num_failures", "parts"])
def test_a_receipt_that_tells_something_else_is_found(run: Run, key: str) -> None:
    path = Path(run.folder.url, "seeds/fine/_receipt.json")
    told = json.loads(path.read_text())
    told[key] = PARTS[:1] if key == "parts" else told[key] + 1
    path.write_text(json.dumps(told))
    with pytest.raises(DamagedFile, match=r"_receipt\.json is damaged"):
        Run(run.folder).receipt("seeds/fine")
    assert not run_command(run, True)
    assert Run(run.folder).begin("seeds/fine", {"reads": {}}) == set(PARTS)


def test_failures_that_are_damaged_are_told_again(run: Run) -> None:
    failure = dict.fromkeys(FAILURES.names, "x") | {"image_id": "i2", "stage": "seeds/fine"}
    mark = run.file_of("seeds/fine", PARTS[0])
    run.folder.child("failures/seeds/fine").write_table(mark, [failure], FAILURES)
    assert find_damage(run) == []
    flip(run, f"failures/seeds/fine/{mark}", 0.2)
    (damage,) = find_damage(run)
    assert (damage.file, damage.part) == (mark, PARTS[0])
    assert not run_command(run, True)
    again = Run(run.folder)
    assert again.begin("seeds/fine", {"reads": {}}) == {PARTS[1]}
    assert again.failures("seeds/fine").num_rows == 0
    rows = [{"image_id": "i0", "seed": b"\0" * 4000}]
    again.accept("seeds/fine", PARTS[0], again.write_part("seeds/fine", PARTS[0], rows, SEEDS, [failure]))
    assert again.failures("seeds/fine").num_rows == 1
    assert find_damage(again) == []


def test_what_a_run_tells_of_its_dataset_can_be_damaged(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record.write_record(run, "seeds/fine", [])
    assert find_damage(run) == []
    flip(run, f"seeds/fine/{record.FILE}", 0.999)
    assert not run_command(run, True)
    assert "changes of that are no longer noticed" in capsys.readouterr().out
    assert record.read_record(run, "seeds/fine") is None
    assert run_command(run, False)


def test_a_journal_that_is_damaged_is_none(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.folder.delete(["seeds/fine/_receipt.json"])
    run.folder.write("seeds/fine/_journal.json", b"[{")
    assert Run(run.folder).begin("seeds/fine", {"reads": {}}) == set(PARTS)
    assert "_journal.json is damaged: every part is read again" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["seeds/fine", "prompts/x"])
def test_what_a_stage_was_begun_with_is_written_again_from_its_receipt(run: Run, stage: str) -> None:
    path = Path(run.folder.url, stage, "_inputs.json")
    before = json.loads(path.read_text())
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DamagedFile, match=r"_inputs\.json is damaged.*verify RUN --mend"):
        Run(run.folder).receipt(stage)
    (damage,) = find_damage(run)
    assert damage.file == "_inputs.json"
    assert not run_command(run, True)
    assert json.loads(path.read_text()) == before
    assert Run(run.folder).receipt(stage)
    # Of an open stage nothing tells it: its parts can't be trusted.
    run.folder.child(stage).delete(["_receipt.json"])
    path.write_bytes(b"{")
    assert not run_command(Run(run.folder), True)
    assert run.folder.child(stage).list("_") == []


def test_a_manifest_that_is_damaged_keeps_nothing_from_being_verified(run: Run, capsys) -> None:
    run.folder.write("manifest.json", b"{")
    assert run_command(Run(run.folder), False)
    assert "manifest.json is damaged: the command that made this run writes it again" in capsys.readouterr().out


def test_leftovers_of_killed_writers_are_swept(run: Run) -> None:
    left = Path(run.folder.url, "seeds/fine", ".part-00000.parquet.ab12.tmp")
    left.write_bytes(b"half")
    run.folder.child("seeds").delete_all()
    assert not left.exists()
