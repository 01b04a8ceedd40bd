"""`fmwsss verify RUN`: whether every file of a run is still what was written, and what to do about others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fmwsss.cluster.storage.driver_lock import hold
from fmwsss.cluster.storage.folder import FileError
from fmwsss.cluster.storage.ledger import FAILURES_FOLDER, INPUTS, MANIFEST, NUM_READERS, RECEIPT, Run
from fmwsss.cluster.storage.parquet import parse_table
from fmwsss.cluster.storage.receipts import StageFile
from fmwsss.cluster.storage.redaction import plain
from fmwsss.cluster.storage.storage_errors import DamagedFile
from fmwsss.core.errors import InputError
from fmwsss.jobs.images import record

PNG_COLUMNS = ("seed", "labels")  # whichever a table has is what its PNGs hold too


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        run: the run that it is of: the one that was asked for, or the predictions in it.
        stage: its stage.
        file: its name there.
        found: what is wrong with it, in a few words.
        part: the part that has to be made again; None if that is the whole stage.
        data: what it should hold, where that is known.
    """

    run: Run
    stage: str
    file: str
    found: str
    part: str | None = None
    data: bytes | None = None


def run_command(run: Run, is_mended: bool) -> bool:
    """Prints what is damaged, and mends it if that is asked for; whether nothing was.

    Args:
        run: the run folder.
        is_mended: whether what is damaged is made again by the next start.

    Raises:
        InputError: there is no run.
    """
    try:
        if run.manifest() is None:
            raise InputError(f"there is no run at {run.folder.url}: it has no manifest.json")
    except DamagedFile:
        print(plain(f"{run.folder.url}/{MANIFEST} is damaged: the command that made this run writes it again"))
    with contextlib.ExitStack() as stack:
        if is_mended:
            claim = stack.enter_context(hold(run.folder, lambda: None))
            run = Run(run.folder.guarded(claim))
            run.folder.sweep()
        damages = find_damage(run)
        for damage in damages:
            print(plain(f"{damage.run.folder.url}/{damage.stage}/{damage.file} {damage.found}"))
        if not damages:
            print(f"every file of {run.folder.url} is what was written")
        elif is_mended:
            print(plain("\n".join(mend(run, damages))))
        else:
            print(f"`fmwsss verify {run.folder.url} --mend` has what is damaged made again by the next start")
    return not damages


def find_damage(run: Run) -> list[Damage]:
    """Reads every file of every stage, also of those of predictions in a run; what of it is not what was written."""
    found = []
    for own, stage in _stages(run):
        try:
            own.demand_inputs(stage)
        except DamagedFile:
            found.append(Damage(own, stage, INPUTS, "is no JSON any more"))
            continue
        found += [damage for look in (_damage_of, _failures_of, _record_of) for damage in look(own, stage)]
    return found


def mend(run: Run, damages: list[Damage]) -> list[str]:
    """Writes what can be written from what is there, and has the rest made again by the next start.

    What was made from a damaged part stays: made again from the same inputs the part has the same bytes.

    Args:
        run: the run folder.
        damages: of `find_damage`.

    Returns:
        What was done, a line each.
    """
    lines = []
    # What reads goes before what it reads: stages are listed in the order in which they are made.
    for own, stage in reversed(_stages(run)):
        mine = [damage for damage in damages if (damage.run.folder.url, damage.stage) == (own.folder.url, stage)]
        for damage in mine:
            if damage.data is not None:
                own.folder.child(stage).write(damage.file, damage.data)
                lines.append(f"{stage}/{damage.file}: written again from its part")
        left = [damage for damage in mine if damage.data is None]
        if any(damage.file == record.FILE for damage in left):
            # The images themselves are whole, and their dataset may be gone.
            own.folder.child(stage).delete([record.FILE])
            left = [damage for damage in left if damage.file != record.FILE]
            lines.append(f"{stage}: what it tells of the dataset is deleted, and changes of that are no longer noticed")
        if any(damage.file == INPUTS for damage in left):
            if own.restore_inputs(stage):
                lines.append(f"{stage}/{INPUTS}: written again from its receipt")
            else:
                own.reset(stage)
                lines.append(f"{stage}: all of it is made again by the next start")
        elif any(damage.file == RECEIPT for damage in left):
            own.do_again(stage, [])
            lines.append(f"{stage}: its receipt is written again by the next start")
        elif any(damage.part is None for damage in left):
            own.reset(stage)
            lines.append(f"{stage}: all of it is made again by the next start")
        elif left:
            parts = sorted({damage.part for damage in left if damage.part})
            own.do_again(stage, parts)
            lines.append(f"{stage}: {', '.join(parts)}: made again by the next start")
    return lines


def _failures_of(run: Run, stage: str) -> Iterator[Damage]:
    """Tables of failed images that can't be read any more: their parts have to be made again."""
    folder = run.folder.child(FAILURES_FOLDER).child(stage)
    for name, part in run.failure_files(stage).items():
        try:
            folder.read_table(name)
        except DamagedFile:
            yield Damage(
                run, stage, name, f"has lost its failures, {folder.url}/{name} is no Parquet file any more", part
            )


def _record_of(run: Run, stage: str) -> Iterator[Damage]:
    try:
        record.read_record(run, stage)
    except DamagedFile:
        yield Damage(run, stage, record.FILE, "is no Parquet file any more")


def _stages(run: Run) -> list[tuple[Run, str]]:
    """Every stage that was begun in a run, or in a run in it, with its run; each run's in the manifest's order."""
    begun = [name.removesuffix(f"/{INPUTS}") for name in run.folder.list() if name.endswith(f"/{INPUTS}")]
    try:
        names = (run.manifest() or {"stages": []})["stages"]
    except DamagedFile:
        names = []
    order = {stage: index for index, stage in enumerate(names)}
    own = sorted((stage for stage in begun if not stage.startswith("predictions/")), key=lambda s: order.get(s, -1))
    inner: dict[str, list[str]] = {}
    for stage in begun:
        if stage.startswith("predictions/"):
            parent, _, name = stage.partition("/")[2].partition("/")
            inner.setdefault(f"predictions/{parent}", []).append(name)
    found = [(run, stage) for stage in own]
    return found + [(Run(run.folder.child(parent)), name) for parent in sorted(inner) for name in inner[parent]]


def _damage_of(run: Run, stage: str) -> Iterator[Damage]:
    folder = run.folder.child(stage)
    try:
        receipt = run.receipt(stage)
    except DamagedFile:
        yield Damage(run, stage, RECEIPT, "can't be read")
        return
    if receipt is None or not receipt.files:
        looked = [(part, run.file_of(stage, part), None) for part in (receipt.parts if receipt else run.parts(stage))]
    else:
        known = {run.file_of(stage, part): part for part in receipt.parts if part.startswith("part-")}
        looked = [(known.get(file.name), file.name, file) for file in receipt.files]
    pngs = folder.sizes("png/")

    def look(entry: tuple[str | None, str, StageFile | None]) -> list[Damage]:
        part, name, file = entry
        is_part = part is not None and part.startswith("part-")
        try:
            if file is not None and not is_part:
                is_whole = folder.size(name) == file.bytes and folder.sha256(name) == file.sha256
                return [] if is_whole else [Damage(run, stage, name, "is not what was written")]
            if not is_part:
                return [] if folder.exists(name) or folder.list(f"{name}/") else [Damage(run, stage, name, "is absent")]
            data = folder.read(name)
            if file is not None and not file.is_whole(data):
                return [Damage(run, stage, name, "is not what was written", part)]
            table = parse_table(data, name)
        except FileError:
            return [Damage(run, stage, name, "is absent", part if is_part else None)]
        except DamagedFile:
            return [Damage(run, stage, name, "is no Parquet file any more", part)]
        column = next((name for name in PNG_COLUMNS if name in table.column_names), None)
        if not pngs or column is None:
            return []
        found = []
        for row in table.select(["image_id", column]).to_pylist():
            png = f"png/{row['image_id']}.png"
            if pngs.get(png) != len(row[column]) or folder.read(png) != row[column]:
                found.append(Damage(run, stage, png, "is not what its part holds", part, row[column]))
        return found

    with ThreadPoolExecutor(NUM_READERS) as pool:
        for found in pool.map(look, looked):
            yield from found
