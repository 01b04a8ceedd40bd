"""Files of a mounted disk: a new one has its name when all of it is on the disk, and not before."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from fmwsss.cluster.storage.storage_errors import FileError, RefusedFile, StorageError


def walk(base: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files below a folder; folders that hold none with this prefix are not looked into.

    Args:
        base: a folder.
        prefix: of names relative to it.

    Returns:
        Name relative to the folder, and bytes.
    """
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


def walk_tokens(base: str) -> Iterator[tuple[str, str]]:
    """Names of the files below a folder, with size and time of the last change; links to folders are not followed."""
    waiting = [""]
    while waiting:
        above = waiting.pop()
        try:
            entries = list(os.scandir(f"{base}/{above}"))
        except OSError:
            continue  # gone meanwhile, or not ours to look into
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{above}{entry.name}/")
                continue
            try:
                about = entry.stat()
            except OSError:
                yield f"{above}{entry.name}", "0:0"  # a link to nowhere
                continue
            if not stat.S_ISDIR(about.st_mode):
                yield f"{above}{entry.name}", f"{about.st_size}:{about.st_mtime_ns}"


def read_local(path: str, max_bytes: int | None = None, start: int = 0, num_bytes: int = -1) -> bytes:
    """The bytes of a file, or `num_bytes` of them from `start` on.

    What is no file (a pipe, a device) is not opened, for nobody knows when it ends; nor is trusted what size a file
    says it has.

    Args:
        path: of a file.
        max_bytes: that it may have; None for any number.
        start: the first byte that is read.
        num_bytes: how many; -1 for all.

    Returns:
        The bytes.

    Raises:
        FileError: it has more than `max_bytes`.
        RefusedFile: it is no file.
        OSError: it can't be read.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, path)
        raise RefusedFile(f"can't read {path}: it is no file but a pipe, a socket or a device")
    if max_bytes is not None and about.st_size > max_bytes:
        raise FileError(f"{path} has {about.st_size} bytes, more than the {max_bytes} that are allowed")
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(num_bytes if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise FileError(f"{path} has more than the {max_bytes} bytes that are allowed")
    return data


def demand_inside(path: str, root: str) -> None:
    """Refuses to change what a link in a folder leads to: a run may come from anybody, and its links with it.

    Args:
        path: of a file that is to be written or deleted, below the root.
        root: a folder, which may itself be a link.

    Raises:
        StorageError: its folder is not in the root.
    """
    parent, top = os.path.realpath(os.path.dirname(path)), os.path.realpath(root)
    if os.path.commonpath([parent, top]) != top:
        raise StorageError(
            f"{path} is not touched: a link in {root} leads out of it, to {parent}. Where its files shall lie there, "
            "give that folder as the whole run's own"
        )


def leftovers(base: Path) -> list[Path]:
    """What writers that were killed have left below a folder."""
    return [Path(parent) / file for parent, _, files in os.walk(base) for file in files if is_temporary(file)]


def write_local(path: str, data: bytes, is_new: bool = False) -> bool:
    """Writes a file and waits for the disk; with `is_new` only where there is none, and whether there was none.

    Args:
        path: of the file; folders above it are made.
        data: the whole content.
        is_new: whether a file that is there stays.

    Returns:
        False where there was one and it stayed.
    """
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


def copy_local(source: str, path: str) -> None:
    """Copies a file under a temporary name, and gives it its own when all of it is on the disk.

    Args:
        source: path of a file.
        path: of the copy; folders above it are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def swap_local(path: str, old: bytes, new: bytes) -> bool:
    """Replaces a file by other bytes if it has the old ones, one process of a machine at a time; whether it did.

    Args:
        path: of the file.
        old: what it must hold.
        new: what it holds then.
    """
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks; then it is two steps
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not os.path.exists(path) or read_local(path) != old:
            return False
        return write_local(path, new)
    finally:
        os.close(folder)


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
