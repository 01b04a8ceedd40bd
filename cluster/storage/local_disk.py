"""Files of a mounted disk: a new one has its name when all of it is on the disk, and not before."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def walk(base: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files below a folder; folders that hold none with this prefix are not looked into."""
    for parent, folders, files in os.walk(base):
        above = Path(parent).relative_to(base).as_posix() + "/" if Path(parent) != base else ""
        folders[:] = [
            name for name in folders if f"{above}{name}/".startswith(prefix) or prefix.startswith(f"{above}{name}/")
        ]
        for file in files:
            if f"{above}{file}".startswith(prefix):
                try:
                    yield f"{above}{file}", os.stat(f"{parent}/{file}").st_size
                except OSError:
                    yield f"{above}{file}", 0  # gone meanwhile, or a link to nowhere


def leftovers(base: Path) -> list[Path]:
    """What writers that were killed have left below a folder."""
    return [Path(parent) / file for parent, _, files in os.walk(base) for file in files if is_temporary(file)]


def write_local(path: str, data: bytes, is_new: bool = False) -> bool:
    """Writes a file and waits for the disk; with `is_new` only where there is none, and whether there was none."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if is_new and not _link(temporary, target):
            return False
        if not is_new:
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.unlink(missing_ok=True)
    return True


def has_links(path: str) -> bool:
    """Whether a disk can give a file a second name: only so is one created by one writer alone."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()
    try:
        os.link(path, f"{path}.tmp")
        os.unlink(f"{path}.tmp")
    except OSError:
        return False
    finally:
        os.unlink(path)
    return True


def _link(temporary: Path, target: Path) -> bool:
    """Gives a file its name unless another has it."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        return False
    except OSError:  # a disk without links
        if target.exists():
            temporary.unlink(missing_ok=True)
            return False
        os.replace(temporary, target)
    return True


def _sync_folder(folder: Path) -> None:
    """A new name lasts only when its folder has been written; not every file system lets one ask."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether a name is one of a file that is still being written."""
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(".tmp")
