"""Every verb of the storage fails in every way at every call of a run; started again, the run is the same."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.cluster.storage.ledger import Receipt, Run, part_name
from fmwsss.core.schemas import failure_row
from tests.support.faulty_folder import FAULTS, VERBS, faulty, possible

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int64())])
PARTS = [part_name(index) for index in range(3)]
STAGES = ("images", "seeds")
MAX_STARTS = 40


def start(run: Run) -> None:
    """What a driver and its workers do, without Ray: two stages, one of which reads the other."""
    for stage in STAGES:
        done = run.begin(stage, {"stage": stage})
        if run.receipt(stage):
            continue
        for index, part in enumerate(PARTS):
            if part in done:
                continue
            value = index if stage == "images" else 10 * run.read_part("images", part)["value"][0].as_py()
            failures = [failure_row("bad", stage, ValueError("x"))] if index == 1 else []
            # As every stage does: a part that is there is wholly told.
            run.folder.child(stage).write_many({f"png/i{index}.png": bytes([index])})
            file = run.write_part(stage, part, [{"image_id": f"i{index}", "value": value}], SCHEMA, failures)
            run.accept(stage, part, file)
            run.write_journal(stage)
        files = run.files_of(stage, PARTS)
        run.finish(Receipt(stage, {"stage": stage}, PARTS, 3, 1, 0.0, "", "", {}, files))


def content(run: Run) -> dict[str, bytes]:
    """Every file, but for the tokens by which starts of a stage are told apart, and what is a hash of them."""
    token = re.compile(rb'("_?attempt": |"sum": )"[0-9a-f]{32,64}"')
    return {name: token.sub(rb'\1"-"', run.folder.read(name)) for name in run.folder.list()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = Run(Folder(str(tmp_path_factory.mktemp("calm"))))
    start(run)
    return content(run)


@pytest.mark.parametrize(("verb", "fault"), [(v, f) for v in VERBS for f in FAULTS if possible(v, f)])
def test_a_fault_in_any_call_leaves_a_run_that_ends_the_same(
    tmp_path: Path, undisturbed: dict[str, bytes], verb: str, fault: str
) -> None:
    for number in range(1, 60):
        folder = Folder(str(tmp_path / str(number)))
        with faulty(verb, fault, number) as faults:
            for _ in range(MAX_STARTS):
                try:
                    start(Run(folder))
                    break
                except StorageError:
                    assert faults.has_happened
            else:
                pytest.fail("the run does not end")
        assert content(Run(folder)) == undisturbed, f"{verb} {number}"
        if not faults.has_happened:
            break
    else:
        pytest.fail("there were more calls than are tried")


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("verb", ["list", "delete", "write"])
def test_a_reset_that_failed_can_be_called_again(tmp_path: Path, verb: str, fault: str) -> None:
    for number in range(1, 12):
        run = Run(Folder(str(tmp_path / str(number))))
        start(run)
        with faulty(verb, fault, number) as faults:
            try:
                run.reset("images")
            except StorageError:
                assert faults.has_happened
        names = run.folder.child("images").list()
        assert "_inputs.json" in names or not names, "parts that are left are not bound to their settings"
        run.reset("images")
        assert run.folder.child("images").list() == []
        if not faults.has_happened:
            break
