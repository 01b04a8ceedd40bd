"""A run's memory: which stages are complete, which parts of them are written, what failed.

<run>/manifest.json
<run>/timeline/<stage>-<start>.json   which node did which shard when
<run>/spending/<start>.json        GPU hours and money that a start of a driver took
<run>/<stage>/_inputs.json         what the stage's rows depend on, and its last attempt; written before the first part
<run>/<stage>/part-<number>-<hash of _inputs.json>.parquet    created once: a task that runs twice changes nothing
<run>/<stage>/_journal.json        parts that are accepted, and their hashes, while the stage is open
<run>/<stage>/_again.json          parts that are made again, while the stage is open; or images of them, by part
<run>/<stage>/_receipt.json        written last: the stage is complete, of exactly the files that it lists
<run>/failures/<stage>/part-*.parquet   written before the part it belongs to: a part that is there is wholly told
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from fmwsss.cluster.storage.driver_lock import RunInUse
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.json_files import read_json
from fmwsss.cluster.storage.parquet import parse_table, table_bytes
from fmwsss.cluster.storage.receipts import Receipt as Receipt
from fmwsss.cluster.storage.receipts import StageFile, file_name, mark_of, part_of, to_json
from fmwsss.cluster.storage.receipts import part_index as part_index
from fmwsss.cluster.storage.receipts import part_name as part_name
from fmwsss.cluster.storage.stage_inputs import ChangedInputs as ChangedInputs
from fmwsss.cluster.storage.stage_inputs import demand_same
from fmwsss.cluster.storage.storage_errors import DamagedFile, FileError, StorageError
from fmwsss.core.schemas import FAILURES

INPUTS = "_inputs.json"
MARK = "_mark"  # a key of INPUTS: what the names of the stage's files carry; absent in runs of an earlier release
ATTEMPT = "_attempt"  # a key of INPUTS: which start of the stage may write its receipt; absent beside an absent MARK
READS = "reads"  # a key of INPUTS: the stages that it reads, and what names their content
JOURNAL = "_journal.json"
AGAIN = "_again.json"
RECEIPT = "_receipt.json"
MANIFEST = "manifest.json"
PROMPTS_FILE = "prompts.safetensors"
FOREGROUND_FILE = "foreground.safetensors"
TIMELINES = "timeline"  # a folder; what an earlier release wrote is one file
OLD_TIMELINE = "timeline.json"
FAILURES_FOLDER = "failures"
PREDICTIONS = "predictions"  # <run>/predictions/<name>/ is a run in the run
NUM_READERS = 16  # small files that are read at the same time
LOOK_BYTES = 4 << 30  # of the parts of a stage that is gone on with; of more, sizes alone are compared with the journal
SMALL_BYTES = 64 << 20  # of a file whose hash is looked at whenever its stage is read

Renewal = Callable[[str, dict[str, Any], Mapping[str, Any]], dict[str, Any]]


@dataclass
class _Known:
    """What a process knows of a stage: the mark of its files, which of them are accepted, which are made again (of
    some only a few images), and, where it began it, its attempt."""

    mark: str
    files: dict[str, StageFile] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    images: dict[str, set[str]] = field(default_factory=dict)
    attempt: str = ""


@dataclass(frozen=True)
class Run:
    """A run folder. Small and picklable: tasks on other nodes write their parts through it.

    A part is asked for by the name that it has in every stage; its file also carries a hash of the stage's inputs, so
    that a worker of a driver that was replaced by one with other settings writes where nobody reads.
    """

    folder: Folder
    _stages: dict[str, _Known] = field(default_factory=dict, compare=False, repr=False)
    _inner: dict[str, Run] = field(default_factory=dict, compare=False, repr=False)  # runs in this run, by their homes

    def within(self, stage: str) -> tuple[Run, str]:
        """The run that holds a stage, and the stage's name there.

        Args:
            stage: such as `seeds/fine`, which is in this run, or `predictions/validation/refined`, which is `refined`
                in the run in the run.
        """
        home = home_of(stage)
        if not home:
            return self, stage
        inner = self._inner.setdefault(home, Run(self.folder.child(home.rstrip("/"))))
        return inner, stage.removeprefix(home)

    def begin(
        self, stage: str, inputs: Mapping[str, Any], renewed: Renewal | None = None, advised: str | None = None
    ) -> set[str]:
        """Start a stage or go on with it; returns the names of the parts that are already written.

        Parts that are damaged, and those that `do_again` named, are not among them.

        Args:
            stage: its folder in this run.
            inputs: what its rows depend on; JSON.
            renewed: (stage, old inputs, new ones) -> the old ones in the words of this release.
            advised: the stage to start again from where the inputs changed; None means this one.

        Raises:
            ChangedInputs: the stage was begun with other inputs.
            RunInUse: another driver begins it at this moment.
        """
        stage_folder = self.folder.child(stage)
        new = json.loads(to_json(inputs))
        there = stage_folder.sizes("_")
        if INPUTS not in there:
            known = self._stages[stage] = _Known(mark_of(new), attempt=uuid.uuid4().hex)
            # Parts without inputs can't be trusted; they are replaced.
            names = (part_of(name, known.mark) for name in stage_folder.list("part-"))
            known.again = {part for part in names if part}
            if not stage_folder.create(INPUTS, to_json({**new, MARK: known.mark, ATTEMPT: known.attempt})):
                raise RunInUse(f"{stage_folder.url} is begun by another driver at this moment")
            return set()
        old = read_json(stage_folder, INPUTS)
        if None in old.get("reads", {}).values():  # see `renew_reads`
            old["reads"] = {
                name: new.get("reads", {}).get(name) if was is None else was for name, was in old["reads"].items()
            }
            stage_folder.write(INPUTS, to_json(old))
        old.pop(ATTEMPT, None)
        known = self._stages[stage] = _Known(old.pop(MARK, ""))
        demand_same(
            f"stage {stage} of {self.folder.url}", renewed(stage, old, new) if renewed else old, new, advised or stage
        )
        if RECEIPT in there and (receipt := self._accepted_receipt(stage)):
            # Of a driver that died in `finish`.
            stage_folder.delete([name for name in (JOURNAL, AGAIN) if name in there])
            return set(receipt.parts)
        known = self._stages[stage] = _Known(known.mark, attempt=self._new_attempt(stage))
        return self._parts_there(stage, known, there)

    def demand_settings(self, stage: str, inputs: Mapping[str, Any], renewed: Renewal, advised: str) -> None:
        """Of a stage that was begun: refuse what `begin` would, as far as it can be known before what it reads is made.

        Args:
            stage: its full name.
            inputs: as `begin` takes them; so are `renewed` and `advised`.

        Raises:
            ChangedInputs: the stage was begun with other inputs.
        """
        new, old = json.loads(to_json(inputs)), read_json(self.folder.child(stage), INPUTS)
        was = renewed(stage, {key: old[key] for key in old if key not in (MARK, ATTEMPT, READS)}, new)
        demand_same(f"stage {stage} of {self.folder.url}", was, new, advised)

    def _new_attempt(self, stage: str) -> str:
        """From here on no receipt of an earlier start of the stage is accepted; empty in a run of an earlier release.

        Raises:
            RunInUse: another driver does the same at this moment.
        """
        folder, attempt = self.folder.child(stage), uuid.uuid4().hex
        inputs, data = read_json(folder, INPUTS), folder.read(INPUTS)
        if MARK not in inputs:
            return ""
        if not folder.swap(INPUTS, data, to_json({**inputs, ATTEMPT: attempt})):
            raise RunInUse(f"{folder.url} is begun by another driver at this moment")
        return attempt

    def _parts_there(self, stage: str, known: _Known, there: Mapping[str, int]) -> set[str]:
        """The parts of an open stage that need not be made again."""
        stage_folder = self.folder.child(stage)
        noted = self._journal_of(stage_folder) if JOURNAL in there else {}
        sizes = stage_folder.sizes("part-")
        parts = {part: name for name in sorted(sizes) if (part := part_of(name, known.mark))}
        are_read = sum(sizes.values()) <= LOOK_BYTES

        def look(name: str) -> StageFile | None:
            noted_file = noted.get(name)
            if noted_file is not None and not are_read:
                return noted_file if noted_file.bytes == sizes[name] else None
            return self._look(stage_folder, name, noted_file)

        with ThreadPoolExecutor(NUM_READERS) as pool:
            files = dict(zip(parts, pool.map(look, parts.values()), strict=True))
        bad = sorted(part for part, file in files.items() if file is None)
        if bad:
            told = f"{', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''}"
            print(f"{stage}: damaged, and made again: {told}", file=sys.stderr, flush=True)
        again = _again_of(read_json(stage_folder, AGAIN)) if AGAIN in there else {}
        known.again = {*bad, *again}
        known.images = {
            part: ids for part, ids in again.items() if ids is not None and part in parts and part not in bad
        }
        known.files = {part: file for part, file in files.items() if file and part not in known.again}
        return set(known.files)

    @staticmethod
    def _journal_of(folder: Folder) -> dict[str, StageFile]:
        """What earlier starts noted of their files, by name; nothing, and a line, where it is damaged."""
        try:
            return {file["name"]: StageFile(**file) for file in read_json(folder, JOURNAL)}
        except (DamagedFile, TypeError, KeyError):
            print(f"{folder.url}/{JOURNAL} is damaged: every part is read again", file=sys.stderr, flush=True)
            return {}

    @staticmethod
    def _look(folder: Folder, name: str, noted: StageFile | None) -> StageFile | None:
        """A part of an earlier start as it is now; None if it is not what was written."""
        try:
            data = folder.read(name)
            if noted is not None:
                return noted if noted.is_whole(data) else None
            return StageFile.of(name, data, parse_table(data, name).num_rows)
        except (DamagedFile, FileError):
            return None

    def file_of(self, stage: str, part: str) -> str:
        """The name of the file that holds a part of a stage.

        Args:
            stage: name.
            part: `part-00000.parquet`, without a mark.

        Returns:
            Relative to the folder of the stage.
        """
        known = self._known(stage)
        accepted = known.files.get(part)
        return accepted.name if accepted else file_name(part, known.mark)

    def read_part(self, stage: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A part of a stage as a table; only the bytes of the columns that are asked for travel.

        Args:
            stage: name.
            part: `part-00000.parquet`, without a mark.
            columns: that are read; None for all.

        Returns:
            The rows in the order of the file.

        Raises:
            DamagedFile: it is not what was written; the line names the command that mends it.
            StorageError: it can't be read.
        """
        folder, name = self.folder.child(stage), self.file_of(stage, part)
        accepted = self._known(stage).files.get(part)
        try:
            if columns is not None:
                return folder.read_table(name, columns)
            data = folder.read(name)
            if accepted and not accepted.is_whole(data):
                raise DamagedFile(f"can't read {folder.url}/{name}: its bytes are not those that were written")
            return parse_table(data, f"{folder.url}/{name}")
        except DamagedFile as error:
            raise DamagedFile(f"{error}; {self.how_to_mend()}") from error

    def how_to_mend(self) -> str:
        """The command that mends what is damaged, in words."""
        return f"`fmwsss verify {self.folder.url} --mend`, and the command that made this run, make it again"

    def parts(self, stage: str) -> list[str]:
        """Names of the parts of a stage that are written, complete or not."""
        mark = self._known(stage).mark
        found = (part_of(name, mark) for name in self.folder.child(stage).list("part-"))
        return sorted(part for part in found if part)

    def _known(self, stage: str) -> _Known:
        if stage not in self._stages and self.receipt(stage) is None:
            self._stages[stage] = _Known(self._mark_of_inputs(stage))
        return self._stages[stage]

    def _mark_of_inputs(self, stage: str) -> str:
        folder = self.folder.child(stage)
        return read_json(folder, INPUTS).get(MARK, "") if folder.exists(INPUTS) else ""

    def _last_attempt(self, stage: str) -> str:
        folder = self.folder.child(stage)
        return read_json(folder, INPUTS).get(ATTEMPT, "") if folder.exists(INPUTS) else ""

    def stages(self, more: Sequence[str] = ()) -> dict[str, list[str]]:
        """Every stage of the manifest, and of `more`, that was begun in this run, with the stages that it reads."""
        names, found = list(dict.fromkeys([*(self.manifest() or {"stages": []})["stages"], *more])), {}
        for stage in names:
            if self.folder.child(stage).exists(INPUTS):
                reads = read_json(self.folder.child(stage), INPUTS).get("reads", {})
                # A stage of a run in the run names what it reads there by its name there.
                nearby = {name: f"{home_of(stage)}{name}" for name in reads}
                found[stage] = sorted(nearby[name] if nearby[name] in names else name for name in reads)
        return found

    def count_rows(self, stage: str, parts: Sequence[str]) -> int:
        """Rows in some parts of a stage; of those that are not known, only the footers are read.

        Args:
            stage: name.
            parts: `part-00000.parquet`, ...

        Returns:
            The sum.
        """
        folder, known = self.folder.child(stage), self._known(stage)

        def count(part: str) -> int:
            accepted = known.files.get(part)
            return accepted.rows if accepted else folder.num_rows(self.file_of(stage, part))

        with ThreadPoolExecutor(NUM_READERS) as pool:
            return sum(pool.map(count, parts))

    def do_again(self, stage: str, parts: Sequence[str], images: Mapping[str, set[str]] | None = None) -> None:
        """Have some parts of a stage made again by its next start; until then they stay as they are.

        The stage is open from here on. Killed in between, it can be called again.

        Args:
            stage: name.
            parts: `part-00000.parquet`, ...
            images: by part, the only ones of which rows are made again; None, and parts that are not in it: all.
        """
        folder = self.folder.child(stage)
        again = _again_of(read_json(folder, AGAIN)) if folder.exists(AGAIN) else {}
        for part in parts:
            own, before = (images or {}).get(part), again.get(part, set())
            again[part] = None if own is None or before is None else {*before, *own}
        whole = sorted(part for part, ids in again.items() if ids is None)
        few = {part: sorted(ids) for part, ids in again.items() if ids is not None}
        folder.write(AGAIN, to_json({"parts": whole, "images": few} if few else whole))
        if folder.exists(INPUTS):
            self._new_attempt(stage)
        folder.delete([RECEIPT])
        self._stages.pop(stage, None)

    def images_again(self, stage: str, part: str) -> set[str] | None:
        """The only images of a part whose rows are made again; the others keep the rows they have.

        Args:
            stage: name.
            part: `part-00000.parquet`, ...

        Returns:
            Ids; None for all.
        """
        return self._known(stage).images.get(part)

    def demand_inputs(self, stage: str) -> None:
        """Whether it can be read with what a stage was begun, if it was; raises DamagedFile."""
        if self.folder.child(stage).exists(INPUTS):
            read_json(self.folder.child(stage), INPUTS)

    def restore_inputs(self, stage: str) -> bool:
        """Write what a stage was begun with again, from its receipt; False where that tells it not."""
        folder = self.folder.child(stage)
        try:
            receipt = Receipt.from_json(folder.read(RECEIPT))
        except (ValueError, KeyError, AttributeError):
            return False
        tokens = {MARK: mark_of(receipt.inputs), ATTEMPT: receipt.attempt} if receipt.attempt else {}
        folder.write(INPUTS, to_json({**receipt.inputs, **tokens}))
        return True

    def was_begun_with(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether a stage was begun, and with these settings; what it reads is not looked at.

        Args:
            stage: name.
            settings: as `begin` takes them.
        """
        folder = self.folder.child(stage)
        if not folder.exists(INPUTS):
            return False
        inputs = read_json(folder, INPUTS)
        return all(inputs.get(key) == value for key, value in json.loads(to_json(settings)).items())

    def renew_reads(self, stage: str) -> None:
        """Have the next start of a stage take what it reads as it is then: what changed of it is told otherwise."""
        folder = self.folder.child(stage)
        if not folder.exists(INPUTS):
            return  # it is begun anew
        inputs = read_json(folder, INPUTS)
        folder.write(INPUTS, to_json({**inputs, "reads": dict.fromkeys(inputs.get("reads", {}))}))

    def accept(self, stage: str, part: str, file: StageFile) -> None:
        """Remember a part that a worker has written.

        Args:
            stage: name.
            part: `part-00000.parquet`, without a mark.
            file: that holds it.
        """
        self._known(stage).files[part] = file

    def write_journal(self, stage: str) -> None:
        """Write down the parts that were accepted until now: a later start finds out by it which are damaged."""
        files = sorted(self._known(stage).files.values(), key=lambda file: file.name)
        self.folder.child(stage).write(JOURNAL, json.dumps([asdict(file) for file in files]).encode())

    def files_of(self, stage: str, parts: Sequence[str]) -> list[StageFile]:
        """The files of some parts, for a receipt; those that no worker told of are read.

        Args:
            stage: name.
            parts: `part-00000.parquet`, ...

        Returns:
            Name, rows, bytes and sha256 of each.
        """
        folder, known = self.folder.child(stage), self._known(stage)

        def look(name: str) -> StageFile:
            size = folder.size(name)
            rows = folder.num_rows(name) if name.endswith(".parquet") else 0
            return StageFile(name, rows, size or 0, folder.sha256(name))

        unknown = [name for part in parts if part not in known.files for name in self._names_of(stage, part)]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return sorted(
                [*(known.files[part] for part in parts if part in known.files), *pool.map(look, unknown)],
                key=lambda file: file.name,
            )

    def _names_of(self, stage: str, part: str) -> list[str]:
        """The files of one part: one, or those of a folder such as a trained network's."""
        folder = self.folder.child(stage)
        for name in (self.file_of(stage, part), part):
            if folder.exists(name):
                return [name]
        return [name for name in folder.list(f"{part}/")]

    def receipt(self, stage: str) -> Receipt | None:
        """The receipt of a stage, or None while it is not complete; one of an earlier attempt counts for nothing.

        Raises:
            DamagedFile: it can't be understood.
        """
        stage_folder = self.folder.child(stage)
        return self._accepted_receipt(stage) if stage_folder.exists(RECEIPT) else None

    def _accepted_receipt(self, stage: str) -> Receipt | None:
        folder = self.folder.child(stage)
        try:
            receipt = Receipt.from_json(folder.read(RECEIPT))
        except (ValueError, KeyError, AttributeError) as error:
            if isinstance(error, StorageError):
                raise
            raise DamagedFile(f"{folder.url}/{RECEIPT} is damaged; {self.how_to_mend()}") from None
        if receipt.attempt and receipt.attempt != self._last_attempt(stage):
            return None
        marks = {match for file in receipt.files if (match := _mark_in(file.name)) is not None}
        mark = marks.pop() if len(marks) == 1 else self._mark_of_inputs(stage)
        files = {part_of(file.name, mark) or file.name: file for file in receipt.files}
        self._stages[stage] = _Known(mark, files)
        return receipt

    def demand_whole(self, receipt: Receipt) -> None:
        """Compare what a complete stage consists of with its receipt: sizes of all, hashes of what is small.

        Raises:
            DamagedFile: something is absent or changed; the line names it and the command that mends it.
        """
        folder = self.folder.child(receipt.stage)
        sizes = folder.sizes("part-" if all(file.name.startswith("part-") for file in receipt.files) else "")
        for file in receipt.files:
            is_small = not file.name.startswith("part-") and file.bytes <= SMALL_BYTES
            if sizes.get(file.name) != file.bytes or (is_small and not file.is_whole(folder.read(file.name))):
                found = "is damaged" if file.name in sizes else "is absent"
                raise DamagedFile(f"{folder.url}/{file.name} {found}; {self.how_to_mend()}")

    def finish(self, receipt: Receipt) -> None:
        """Mark a stage as complete. Everything else of it must be written before.

        Raises:
            RunInUse: another driver has begun the stage since; its receipt stays, and this one would count for nothing.
        """
        folder, known = self.folder.child(receipt.stage), self._stages.get(receipt.stage)
        attempt = known.attempt if known else ""
        data = replace(receipt, attempt=attempt).to_json()
        if not attempt:
            folder.write(RECEIPT, data)
        elif attempt != self._last_attempt(receipt.stage) or not (
            # One that is there is of an earlier attempt.
            folder.create(RECEIPT, data) or folder.swap(RECEIPT, folder.read(RECEIPT), data)
        ):
            raise RunInUse(f"{folder.url} was begun anew by another driver")
        # After it, and not before: what they tell is in the receipt now.
        folder.delete([JOURNAL, AGAIN])

    def reset(self, stage: str) -> None:
        """Delete a stage and its failures, so that it starts anew. Killed in between, it can be called again."""
        self._stages.pop(stage, None)
        stage_folder = self.folder.child(stage)
        names = stage_folder.list()
        receipts = [name for name in names if name.rpartition("/")[2] == RECEIPT]
        inputs = [name for name in names if name.rpartition("/")[2] == INPUTS]
        stage_folder.delete(receipts)
        self.folder.child(FAILURES_FOLDER).child(stage).delete_all()
        stage_folder.delete(sorted(set(names) - set(receipts) - set(inputs)))
        # Last: parts that outlived a killed reset stay bound to the settings they came from.
        stage_folder.delete(inputs)

    def write_part(
        self,
        stage: str,
        part: str,
        table: pa.Table | Sequence[Mapping[str, Any]],
        schema: pa.Schema,
        failures: Sequence[Mapping[str, Any]],
    ) -> StageFile:
        """Write a part (perhaps without rows) and the failures (rows of FAILURES) of the images that are not in it.

        A part that is there stays, unless it is one that is to be made again: a task that was done twice, or one of a
        driver that was replaced, changes nothing.

        Args:
            stage: name.
            part: `part-00000.parquet`, without a mark.
            table: a table or rows.
            schema: of the file.
            failures: of images of this part.

        Returns:
            The file, as it is now.
        """
        known, folder, name = self._known(stage), self.folder.child(stage), self.file_of(stage, part)
        stage_failures = self.folder.child(FAILURES_FOLDER).child(stage)
        if (few := known.images.get(part)) is not None:
            table, failures = self._with_others(stage, part, few, table, schema, failures)
        if failures:
            stage_failures.write_table(name, failures, FAILURES)
        else:
            # An earlier attempt at this part may have failed where this one did not.
            stage_failures.delete([name])
        data = table_bytes(table, schema)
        if part in known.again:
            folder.write(name, data)
        elif not folder.create(name, data):
            data = folder.read(name)
        return StageFile.of(name, data, parse_table(data, name).num_rows)

    def _with_others(
        self,
        stage: str,
        part: str,
        few: set[str],
        table: pa.Table | Sequence[Mapping[str, Any]],
        schema: pa.Schema,
        failures: Sequence[Mapping[str, Any]],
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Rows and failures of a part, those of all but a few images as they are there; rows in the order there."""
        there = self.read_part(stage, part)
        old = there.select([name for name in schema.names if name in there.column_names]).to_pylist()
        given: Any = table  # pyarrow has no types that a checker could narrow by
        rows = given.to_pylist() if isinstance(given, pa.Table) else given
        new = {row["image_id"]: row for row in rows if row["image_id"] in few}
        kept = [new.pop(row["image_id"], None) if row["image_id"] in few else row for row in old]
        folder, name = self.folder.child(FAILURES_FOLDER).child(stage), self.file_of(stage, part)
        told = folder.read_table(name).to_pylist() if folder.exists(name) else []
        told = [row for row in told if row["image_id"] not in few]
        told += [row for row in failures if row["image_id"] in few]
        return [row for row in (*kept, *new.values()) if row is not None], told

    def failures(self, stage: str | None = None) -> pa.Table:
        """The rows of FAILURES of one stage, or of all, in the order of their parts.

        Of one stage only those of parts that are written: the others will be told again.
        """
        folder = self.folder.child(FAILURES_FOLDER)
        names = [name for name in folder.list(f"{stage}/" if stage else "") if name.endswith(".parquet")]
        written = {name: set(self.folder.child(name).list("part-")) for name in ([stage] if stage else [])}
        chosen = []
        for name in names:
            own_stage, _, file = name.rpartition("/")
            if stage not in (None, own_stage):
                continue
            known = self._known(own_stage)
            part = part_of(file, known.mark)
            # What is made again is told again.
            is_current = part is not None and (part in known.files or part not in known.again)
            if is_current and file in written.get(own_stage, {file}):
                chosen.append(name)
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return pa.concat_tables([FAILURES.empty_table(), *pool.map(folder.read_table, chosen)])

    def num_failures_of(self, stage: str, part: str) -> int:
        """How many images of a part a stage could not use; the part need not be accepted yet.

        Args:
            stage: name.
            part: `part-00000.parquet`, ...
        """
        folder, name = self.folder.child(FAILURES_FOLDER).child(stage), self.file_of(stage, part)
        return folder.num_rows(name) if folder.exists(name) else 0

    def failed_parts(self, stage: str) -> dict[str, int]:
        """Failed images of a stage by part."""
        folder, mark = self.folder.child(FAILURES_FOLDER).child(stage), self._known(stage).mark
        parts = {part: name for name in folder.list("part-") if (part := part_of(name, mark))}
        return {part: folder.num_rows(name) for part, name in parts.items()}

    def failure_files(self, stage: str) -> dict[str, str]:
        """Files of the table of failures of a stage, in its folder there, with the parts that they belong to."""
        names, mark = self.folder.child(FAILURES_FOLDER).child(stage).list("part-"), self._mark_of_inputs(stage)
        return {name: part for name in names if (part := part_of(name, mark))}

    def timeline(self) -> list[dict[str, Any]]:
        """When each operator had each shard, on which node and process: events of Chrome's trace format."""
        old = [OLD_TIMELINE] if self.folder.exists(OLD_TIMELINE) else []
        events = []
        for name in [*old, *sorted(self.folder.list(f"{TIMELINES}/"))]:
            try:
                events += json.loads(self.folder.read(name))
            except ValueError as error:
                if isinstance(error, StorageError):
                    raise
                # Nothing depends on it.
        return events

    def add_timeline(self, stage: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Write the events of one start of a stage as a file, which Chrome and Perfetto show.

        Args:
            stage: name.
            events: in Chrome's trace format.
        """
        if not events:
            return
        name = f"{TIMELINES}/{stage.replace('/', '-')}"
        number = sum(each.rpartition("-")[0] == name for each in self.folder.list(f"{TIMELINES}/"))
        lines = ",\n".join(json.dumps(event) for event in events)
        self.folder.write(f"{name}-{number}.json", f"[\n{lines}\n]\n".encode())

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the resolved configuration, versions and weights of the run."""
        self.folder.write(MANIFEST, to_json(manifest))

    def manifest(self) -> dict[str, Any] | None:
        """What `write_manifest` wrote, or None in a new run."""
        return read_json(self.folder, MANIFEST) if self.folder.exists(MANIFEST) else None


def home_of(stage: str) -> str:
    """The folder of the run in the run that a stage belongs to, with a slash at its end; empty for the run's own."""
    parts = stage.split("/")
    return f"{parts[0]}/{parts[1]}/" if parts[0] == PREDICTIONS and len(parts) > 2 else ""


def _again_of(told: Any) -> dict[str, set[str] | None]:
    """What AGAIN says: by part its images, None for all; a plain list has whole parts."""
    if isinstance(told, list):
        return dict.fromkeys(told)
    return {**dict.fromkeys(told["parts"]), **{part: set(ids) for part, ids in told["images"].items()}}


def _mark_in(file: str) -> str | None:
    """The mark in a name that `file_name` made; None if it is no part's."""
    stem = file.removesuffix(".parquet")
    return stem.partition("-")[2].partition("-")[2] if file.startswith("part-") else None
