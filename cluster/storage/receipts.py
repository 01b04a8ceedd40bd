"""What a complete stage tells about itself, and how its files are named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fmwsss.core.errors import InputError

NUM_DIGITS = 8  # of the hash in a file's name
SUM = "sum"  # a key of a receipt: of all the others
_PART = re.compile(r"part-(\d+)(?:-([0-9a-f]{8}))?\.parquet")


@dataclass(frozen=True)
class StageFile:
    """A file of a stage, as it was when it was accepted.

    Attributes:
        name: in the folder of the stage.
        rows: of a Parquet file; 0 of others.
        bytes: its size.
        sha256: of its bytes.
    """

    name: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes, num_rows: int = 0) -> StageFile:
        """The file that these bytes are.

        Args:
            name: relative to the folder of the stage.
            data: the whole content.
            num_rows: of a Parquet file; 0 for others.

        Returns:
            Name, rows, bytes and sha256.
        """
        return cls(name, num_rows, len(data), hashlib.sha256(data).hexdigest())

    def is_whole(self, data: bytes) -> bool:
        """Whether these are its bytes."""
        return len(data) == self.bytes and hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True)
class Receipt:
    """What a complete stage tells about itself.

    Attributes:
        stage: its folder in the run, such as `seeds/coarse`.
        inputs: the resolved settings that its rows depend on; JSON.
        parts: names of its parts, sorted; those of `part_name`, whatever their files are called.
        num_rows: rows in all parts.
        num_failures: images that failed in this stage.
        seconds: wall time of the stage's last start until its end.
        started, finished: ISO 8601, with a time zone.
        versions: packages and their versions.
        files: exactly the files that the stage consists of, but for PNGs, which its parts hold too; of a release that
            did not count them, none.
        attempt: the start of the stage that wrote it; a receipt of an earlier start is none.
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
    files: list[StageFile] = field(default_factory=list)
    attempt: str = field(default="", compare=False)

    def to_json(self) -> bytes:
        """This receipt as JSON, in UTF-8, with a hash of what it tells."""
        told = json.loads(to_json(asdict(self)))
        return to_json({**told, SUM: _sum_of(told)})

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """The receipt that `to_json` wrote; what a newer release tells beyond it is left out.

        Raises:
            ValueError: it is no receipt, or not what was written.
        """
        told = json.loads(data)
        # Those of earlier releases have none.
        if SUM in told and told.pop(SUM) != _sum_of(told):
            raise InputError("it is not what was written")
        known = {name: told[name] for name in (field.name for field in fields(cls)) if name in told}
        files = [StageFile(**{key: file[key] for key in asdict(_NONE)}) for file in told.get("files", [])]
        try:
            return cls(**{**known, "files": files})
        except TypeError as error:
            raise InputError(f"it is no receipt: {error}") from None


_NONE = StageFile("", 0, 0, "")


def _sum_of(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json({key: told[key] for key in told if key != SUM})).hexdigest()


def part_name(index: int) -> str:
    """The name of part `index` of a stage: the same of every stage, for the same images."""
    return f"part-{index:05d}.parquet"


def part_index(part: str) -> int:
    """The index that `part_name` made this name of."""
    return int(part.removeprefix("part-").removesuffix(".parquet"))


def file_name(part: str, mark: str) -> str:
    """The name of the file that a stage of this mark keeps a part in.

    Args:
        part: `part-00000.parquet`, without a mark.
        mark: of the stage's inputs; empty for runs of earlier releases.

    Returns:
        `part-00000-MARK.parquet`.
    """
    match = _PART.fullmatch(part)
    return f"{part.removesuffix('.parquet')}-{mark}.parquet" if mark and match and not match[2] else part


def part_of(file: str, mark: str) -> str | None:
    """The part that `file_name` made this name of; None if it is of another mark, or no part.

    Args:
        file: name of a file of a stage.
        mark: of the stage's inputs.

    Returns:
        `part-00000.parquet`, or None.
    """
    match = _PART.fullmatch(file)
    return f"part-{match[1]}.parquet" if match and (match[2] or "") == mark else None


def mark_of(inputs: Mapping[str, Any]) -> str:
    """The hash of a stage's inputs that the names of its files carry."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:NUM_DIGITS]


def to_json(value: Any) -> bytes:
    """JSON for people, always in the same order."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
