"""A run's memory: which stages are complete, which parts of them are written, what failed.

<run>/manifest.json, timeline.json
<run>/<stage>/_inputs.json         what the stage's rows depend on; written before the first part
<run>/<stage>/part-*.parquet       named by content: a task that runs twice writes the same bytes again
<run>/<stage>/_receipt.json        written last: the stage is complete
<run>/failures/<stage>/part-*.parquet   written before the part it belongs to: a part that is there is wholly told
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.schemas import FAILURES

INPUTS = "_inputs.json"
RECEIPT = "_receipt.json"
MANIFEST = "manifest.json"
PROMPTS_FILE = "prompts.safetensors"
TIMELINE = "timeline.json"
FAILURES_FOLDER = "failures"
NUM_READERS = 16  # small files that are read at the same time


class ChangedInputs(ValueError):  # noqa: N818 - the name says what happened
    """A stage was begun in this run with other settings; the line names each of them, then what to do.

    Attributes:
        found: the line without what to do.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}")
        self.found = found


@dataclass(frozen=True)
class Receipt:
    """What a complete stage tells about itself.

    Attributes:
        stage: its folder in the run, such as `seeds/coarse`.
        inputs: the resolved settings that its rows depend on; JSON.
        parts: names of its parts, sorted.
        num_rows: rows in all parts.
        num_failures: images that failed in this stage.
        seconds: wall time of the stage's last start until its end.
        started, finished: ISO 8601, with a time zone.
        versions: packages and their versions.
    """

    stage: str
    inputs: dict[str, Any]
    parts: list[str]
    num_rows: int
    num_failures: int
    seconds: float
    started: str
    finished: str
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """This receipt as JSON, in UTF-8."""
        return _to_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """The receipt that `to_json` wrote."""
        return cls(**json.loads(data))


def part_name(index: int) -> str:
    """The name of part `index` of a stage."""
    return f"part-{index:05d}.parquet"


def part_index(part: str) -> int:
    """The index that `part_name` made this name of."""
    return int(part.removeprefix("part-").removesuffix(".parquet"))


@dataclass(frozen=True)
class Run:
    """A run folder. Small and picklable: tasks on other nodes write their parts through it."""

    folder: Folder

    def begin(self, stage: str, inputs: Mapping[str, Any]) -> set[str]:
        """Start a stage or go on with it; returns the names of the parts that are already written.

        Raises:
            ChangedInputs: the stage was begun with other inputs.
        """
        stage_folder = self.folder.child(stage)
        new = json.loads(_to_json(inputs))
        if not stage_folder.exists(INPUTS):
            # Parts without inputs can't be trusted; they are replaced.
            stage_folder.write(INPUTS, _to_json(new))
            return set()
        changes = _changes(json.loads(stage_folder.read(INPUTS)), new)
        if changes:
            raise ChangedInputs(
                f"stage {stage} of {self.folder.url} was begun with other settings: {'; '.join(changes)}",
                "use another run folder, or start again from this stage with `--from`",
            )
        return {name for name in stage_folder.list("part-") if name.endswith(".parquet")}

    def stages(self) -> dict[str, list[str]]:
        """Every stage of the manifest that was begun in this run, with the stages that it reads."""
        found = {}
        for stage in (self.manifest() or {"stages": []})["stages"]:
            if self.folder.child(stage).exists(INPUTS):
                found[stage] = sorted(json.loads(self.folder.child(stage).read(INPUTS)).get("reads", {}))
        return found

    def count_rows(self, stage: str, parts: Sequence[str]) -> int:
        """Rows in some parts of a stage; only their footers are read."""
        folder = self.folder.child(stage)
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return sum(pool.map(folder.num_rows, parts))

    def delete_parts(self, stage: str, parts: Sequence[str]) -> None:
        """Delete some parts of a stage with their failures, so that they are done again."""
        folder = self.folder.child(stage)
        folder.delete([RECEIPT, *parts])
        self.folder.child(FAILURES_FOLDER).child(stage).delete(parts)

    def receipt(self, stage: str) -> Receipt | None:
        """The receipt of a stage, or None while it is not complete."""
        stage_folder = self.folder.child(stage)
        return Receipt.from_json(stage_folder.read(RECEIPT)) if stage_folder.exists(RECEIPT) else None

    def finish(self, receipt: Receipt) -> None:
        """Mark a stage as complete. Everything else of it must be written before."""
        self.folder.child(receipt.stage).write(RECEIPT, receipt.to_json())

    def reset(self, stage: str) -> None:
        """Delete a stage and its failures, so that it starts anew. Killed in between, it can be called again."""
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
    ) -> None:
        """Write a part (perhaps without rows) and the failures (rows of FAILURES) of the images that are not in it."""
        stage_failures = self.folder.child(FAILURES_FOLDER).child(stage)
        if failures:
            stage_failures.write_table(part, failures, FAILURES)
        else:
            # An earlier attempt at this part may have failed where this one did not.
            stage_failures.delete([part])
        self.folder.child(stage).write_table(part, table, schema)

    def failures(self, stage: str | None = None) -> pa.Table:
        """The rows of FAILURES of one stage, or of all, in the order of their parts.

        Of one stage only those of parts that are written: the others will be told again.
        """
        folder = self.folder.child(FAILURES_FOLDER)
        names = [name for name in folder.list(f"{stage}/" if stage else "") if name.endswith(".parquet")]
        if stage:
            written = set(self.folder.child(stage).list("part-"))
            names = [name for name in names if name.removeprefix(f"{stage}/") in written]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return pa.concat_tables([FAILURES.empty_table(), *pool.map(folder.read_table, names)])

    def timeline(self) -> list[dict[str, Any]]:
        """When each operator had each shard, on which node and process: events of Chrome's trace format."""
        return json.loads(self.folder.read(TIMELINE)) if self.folder.exists(TIMELINE) else []

    def add_timeline(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Add events to `timeline.json`, which Chrome and Perfetto show."""
        lines = ",\n".join(json.dumps(event) for event in [*self.timeline(), *events])
        self.folder.write(TIMELINE, f"[\n{lines}\n]\n".encode())

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the resolved configuration, versions and weights of the run."""
        self.folder.write(MANIFEST, _to_json(manifest))

    def manifest(self) -> dict[str, Any] | None:
        """What `write_manifest` wrote, or None in a new run."""
        return json.loads(self.folder.read(MANIFEST)) if self.folder.exists(MANIFEST) else None


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or (key and not value):
        return {key: value}
    return {name: leaf for part in value for name, leaf in _flat(value[part], f"{key}.{part}" if key else part).items()}


def _changes(old: Any, new: Any) -> list[str]:
    was, now = _flat(old), _flat(new)

    def shown(values: dict[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "(not set)"

    return [
        f"{key}: {shown(was, key)} -> {shown(now, key)}"
        for key in sorted(was.keys() | now.keys())
        if key not in was or key not in now or was[key] != now[key]
    ]
