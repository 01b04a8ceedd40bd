"""What `fmwsss verify` finds in a run, and what it does about it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.cluster.storage.storage_errors import DamagedFile
from fmwsss.jobs.commands.verify import find_damage, run_command
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


def test_leftovers_of_killed_writers_are_swept(run: Run) -> None:
    left = Path(run.folder.url, "seeds/fine", ".part-00000.parquet.ab12.tmp")
    left.write_bytes(b"half")
    run.folder.child("seeds").delete_all()
    assert not left.exists()
