"""A folder on a local disk or an object store: whole objects in and out, nothing ever half written.

Only PUT, GET, LIST and DELETE are asked of an object store, and, where it has them, PUTs that only create
(If-None-Match) or only replace what was read (If-Match). A `Folder` is only a URL: credentials and endpoint come from
the environment of the process that opens it (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from fmwsss.cluster.storage.local_disk import (
    copy_local,
    demand_inside,
    has_links,
    is_temporary,
    leftovers,
    read_local,
    swap_local,
    walk,
    walk_tokens,
    write_local,
)
from fmwsss.cluster.storage.parquet import READING, checked, parse_table, table_bytes
from fmwsss.cluster.storage.redaction import has_secret
from fmwsss.cluster.storage.storage_errors import DamagedFile as DamagedFile
from fmwsss.cluster.storage.storage_errors import FileError as FileError
from fmwsss.cluster.storage.storage_errors import RefusedFile as RefusedFile
from fmwsss.cluster.storage.storage_errors import StorageError as StorageError
from fmwsss.cluster.storage.storage_errors import (
    is_missing_bucket,
    is_refused_creation,
    is_transient,
    kind_of,
    reason_of,
    seconds_from,
)
from fmwsss.core.errors import InputError

NUM_TRIES = 9
NUM_TRIES_AT_START = 4  # a mistake in an address should be told soon
# How long a store that is out of order (it restarts, it throttles) is waited for. The first wait is doubled each time.
PATIENCE_S = seconds_from("FMWSSS_PATIENCE_S", 120)
FIRST_WAIT_S = PATIENCE_S / (2 ** (NUM_TRIES - 1) - 1)
NUM_DELETERS = NUM_WRITERS = 16
PIECE_BYTES = 8 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Folder:
    """A folder named by a local path or by a URL (`s3://bucket/prefix`, or another scheme that fsspec has).

    Small, hashable and picklable: it goes to Ray's workers as it is, and each opens its own connection.

    Attributes:
        url: where it is.
        guard: called before anything here or below is written or deleted; raises where that is no longer allowed (a
            driver that was replaced, see `driver_lock`).
        root: what nothing is written or deleted outside of, by way of a link in it; left out, the folder itself. Those
            of `child` keep it.

    Raises:
        ValueError: the URL is empty, or has credentials in it.
    """

    url: str
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    root: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.url.strip():
            raise InputError("a folder needs a path or a URL; this one is empty")
        scheme, separator, rest = self.url.partition("://")
        if has_secret(self.url):
            raise InputError(
                f"a {scheme}:// URL has credentials or a query in it; give them by environment variables instead"
            )
        if not separator or scheme == "file":
            # Workers have other working directories than the driver.
            url = os.path.abspath(os.path.expanduser(rest if separator else self.url))
        else:
            url = f"{scheme.lower()}://{rest}".rstrip("/")
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "root", self.root or url)

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of a mounted disk."""
        return "://" not in self.url

    def child(self, name: str) -> Folder:
        """The folder `name` (which may be nested: `seeds/coarse`) in this one; it need not exist."""
        return replace(self, url=self._at(name))

    def guarded(self, guard: Callable[[], None] | None) -> Folder:
        """The same folder, whose writers first ask `guard`."""
        return replace(self, guard=guard)

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files below this folder that begin with `prefix`, relative to it, sorted; none if it is absent.

        One LIST. Files that are still being written are left out.
        """
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The files of `list` with their sizes in bytes; the same single LIST."""
        if self.is_local:
            found = dict(walk(Path(self.url), prefix))
        else:
            found = {name: int(about.get("size") or 0) for name, about in self._find(prefix).items()}
        return {name: size for name, size in found.items() if name.startswith(prefix) and not is_temporary(name)}

    def tokens(self) -> dict[str, str]:
        """The files of `list` with what changes when their content does; the same single LIST.

        On a disk that is size and time of the last change, in a store its size and what it calls the content (ETag).
        """
        if self.is_local:
            return {name: token for name, token in walk_tokens(self.url) if not is_temporary(name)}
        return {
            name: f"{about.get('size')}:{about.get('ETag') or about.get('LastModified') or ''}".replace('"', "")
            for name, about in self._find("").items()
        }

    def _find(self, prefix: str) -> dict[str, dict[str, Any]]:
        def find() -> dict[str, dict[str, Any]]:
            filesystem, path = self._open()
            # Only s3fs narrows the LIST itself; the filter of the caller is for the others.
            options: dict[str, Any] = {"prefix": prefix} if prefix and self.url.startswith("s3") else {}
            told = filesystem.find(path, detail=True, **options)
            return {name[len(path) + 1 :]: about for name, about in told.items() if name.startswith(path + "/")}

        return self._patiently("list", self.url, find)

    def probe(self) -> None:
        """Ask whether the folder answers at all, with less patience than usual; it need not exist.

        Raises:
            StorageError: it doesn't: no such bucket, no credentials, no endpoint.
        """

        def look() -> None:
            filesystem, path = self._open()
            try:
                filesystem.info(f"{path}/{uuid.uuid4().hex}")
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise

        if not self.is_local:
            self._patiently("reach", self.url, look, NUM_TRIES_AT_START)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is none of this name."""
        path = self._at(name)
        if self.is_local:
            return os.path.getsize(path) if os.path.isfile(path) else None

        def info() -> int | None:
            try:
                about = self._open()[0].info(path)
                return int(about.get("size") or 0) if about["type"] == "file" else None
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise
                return None

        return self._patiently("look up", path, info)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """The bytes of a file.

        Args:
            name: relative to the folder.
            max_bytes: that are read at the most; None for any number.

        Returns:
            All bytes.

        Raises:
            FileError: there is none, or it is larger than `max_bytes` and is not read.
            StorageError: it can't be read.
        """
        path = self._at(name)

        def read() -> bytes:
            if self.is_local:
                return read_local(path, max_bytes)
            filesystem, _ = self._open()
            if max_bytes is not None and (size := filesystem.size(path)) > max_bytes:
                raise FileError(f"{path} has {size} bytes, more than the {max_bytes} that are allowed")
            return filesystem.cat_file(path, **self._whole("max_concurrency", 1))

        return self._patiently("read", path, read)

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        """Some bytes of a file, fewer where it ends before; raises as `read`.

        Args:
            name: relative to the folder.
            start: the first byte.
            num_bytes: how many.

        Returns:
            At most `num_bytes` bytes.
        """
        path = self._at(name)

        def read() -> bytes:
            if self.is_local:
                return read_local(path, None, start, num_bytes)
            return self._open()[0].cat_file(path, start=start, end=start + num_bytes)

        return self._patiently("read", path, read)

    def open(self, name: str) -> Any:
        """A file to be read piece by piece, for what is too large for `read`; an error on the way is the caller's.

        Raises:
            StorageError: it can't be opened.
        """
        path = self._at(name)
        return self._patiently("read", path, lambda: self._open()[0].open(path, "rb", block_size=PIECE_BYTES))

    def sha256(self, name: str) -> str:
        """The sha256 of a file, read piece by piece; raises as `read`."""
        path = self._at(name)

        def read() -> str:
            digest = hashlib.sha256()
            with self._open()[0].open(path, "rb", cache_type="none") as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
            return digest.hexdigest()

        return self._patiently("read", path, read)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, or not at all; one that is there is replaced.

        Args:
            name: relative to the folder.
            data: the whole content.

        Raises:
            StorageError: it can't be written.
        """
        path = self._target(name)
        if self.is_local:
            self._patiently("write", path, lambda: write_local(path, data))
        else:
            self._patiently(
                "write", path, lambda: self._open()[0].pipe_file(path, data, **self._whole("chunksize", 2**40))
            )

    def upload(self, name: str, local_path: str) -> None:
        """Write a file of this machine as a file here, whole or not at all, without holding it in memory.

        Args:
            name: relative to the folder.
            local_path: of a file of this machine.

        Raises:
            StorageError: it can't be written.
        """
        path = self._target(name)
        if self.is_local:
            self._patiently("write", path, lambda: copy_local(local_path, path))
        else:
            self._patiently("write", path, lambda: self._open()[0].put_file(local_path, path))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file whole if there is none of this name; whether there is one with these bytes now, by any writer.

        Where the storage has no way to do so at once (see `creates_exclusively`), it is looked up before.

        Args:
            name: relative to the folder.
            data: the whole content.

        Returns:
            False where the file that is there holds something else.
        """
        path = self._target(name)
        if self.is_local:
            is_new = self._patiently("write", path, lambda: write_local(path, data, is_new=True))
            return is_new or self.read(name) == data

        # Servers without conditional writes take the PUT as any other; other schemes may not know of them.
        is_free = self.url.startswith("s3") or not self.exists(name)
        is_new = is_free and self._patiently("write", path, lambda: self._put_new(path, data))
        # Refused also when an earlier try of this very PUT came through and only its answer was lost.
        return is_new or self.read(name) == data

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Replace a file by other bytes if it has the old ones; whether it has the new ones now, by any writer.

        In one step on a disk with locks and in a store with If-Match; another takes it as two, and who wrote last is
        found by reading again.

        Args:
            name: of the file.
            old: what it must hold.
            new: what it holds then.
        """
        path = self._target(name)
        if self.is_local:
            return self._patiently("write", path, lambda: swap_local(path, old, new)) or self.read(name) == new
        # What the store calls the content comes first: if it changes before the bytes are read, the PUT is refused.
        tag = self._patiently("look up", path, lambda: self._open()[0].info(path).get("ETag"))
        if self.read(name) != old:
            return self.read(name) == new
        match = {"IfMatch": tag} if tag and self.url.startswith("s3") else {}
        self._patiently("write", path, lambda: self._put_if(path, new, **match))
        # Refused also when an earlier try of this very PUT came through and only its answer was lost.
        return self.read(name) == new

    def creates_exclusively(self) -> bool:
        """Whether of several writers that create one file only one can: found out by writing twice."""
        name = f".{uuid.uuid4().hex}.tmp"
        path = self._at(name)
        if self.is_local:
            return self._patiently("write", path, lambda: has_links(path))
        try:
            self._patiently("write", path, lambda: self._put_new(path, b"once"))
            return not self._patiently("write", path, lambda: self._put_new(path, b"twice"))
        except (NotImplementedError, TypeError):
            return False
        finally:
            self._patiently("delete", path, lambda: self._remove(path))

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write several files, each whole or not at all; in bulk on an object store."""
        self._demand_leave()
        if self.is_local:
            # Each fsync waits for the disk; together they wait once.
            with ThreadPoolExecutor(NUM_WRITERS) as pool:
                list(pool.map(lambda item: self._write_one(*item), files.items()))
        elif files:
            paths = {self._at(name): data for name, data in files.items()}
            self._patiently("write", self.url, lambda: self._open()[0].pipe(paths, **self._whole("chunksize", 2**40)))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file as a table; only the bytes of the columns that are asked for travel.

        Args:
            name: relative to the folder.
            columns: that are read; None for all.

        Returns:
            The rows in the order of the file.

        Raises:
            DamagedFile: its pages don't have the checksums that were written with them, or it is no Parquet file.
            StorageError: it can't be read.
        """
        if columns is None:
            return parse_table(self.read(name), f"{self.url}/{name}")
        path = self._at(name)

        def read() -> pa.Table:
            with self._open()[0].open(path, "rb", cache_type="none") as file:
                return checked(lambda: pq.read_table(file, columns=list(columns), **READING), path)

        return self._patiently("read", path, read)

    def num_rows(self, name: str) -> int:
        """How many rows a Parquet file has; only its footer travels."""
        path = self._at(name)

        def read() -> int:
            filesystem, _ = self._open()
            with filesystem.open(path, "rb", cache_type="none") as file:
                return checked(lambda: pq.read_metadata(file).num_rows, path)

        return self._patiently("read", path, read)

    def write_table(self, name: str, table: pa.Table | Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Write a table, or rows, as a Parquet file of this schema; the same rows give the same bytes.

        Args:
            name: relative to the folder.
            table: a table or rows.
            schema: of the file.
        """
        self.write(name, table_bytes(table, schema))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; a name that is absent is no error."""
        self._demand_leave()
        paths = [self._at(name) for name in names]
        for path in {os.path.dirname(path): path for path in paths}.values() if self.is_local else ():
            demand_inside(path, self.root)

        def delete(path: str) -> None:
            self._patiently("delete", path, lambda: self._remove(path))

        # One request each: deleting many at once is more than every object store can do.
        with ThreadPoolExecutor(1 if self.is_local else NUM_DELETERS) as pool:
            list(pool.map(delete, paths))

    def delete_all(self) -> None:
        """Delete every file below this folder, and what killed writers left behind."""
        self.delete(self.list())
        self.sweep()

    def sweep(self) -> int:
        """Delete what writers that were killed have left on a local disk; how many files that were."""
        left = leftovers(Path(self.url)) if self.is_local else []
        for path in left:
            demand_inside(str(path), self.root)
            path.unlink(missing_ok=True)
        return len(left)

    def _demand_leave(self) -> None:
        if self.guard is not None:
            self.guard()

    def _write_one(self, name: str, data: bytes) -> None:
        path = self._target(name)
        self._patiently("write", path, lambda: write_local(path, data))

    def _at(self, name: str) -> str:
        parts = name.split("/")
        if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise InputError(f"{name!r} is no name inside {self.url}: it may not be empty, absolute or hold `..`")
        return f"{self.url.rstrip('/')}/{name}"

    def _target(self, name: str) -> str:
        """The path of a file that is to be written or deleted, if that is allowed."""
        path = self._at(name)
        self._demand_leave()
        if self.is_local:
            demand_inside(path, self.root)
        return path

    def _put_new(self, path: str, data: bytes) -> bool:
        return self._put_if(path, data, mode="create")

    def _put_if(self, path: str, data: bytes, **condition: Any) -> bool:
        try:
            self._open()[0].pipe_file(path, data, **condition, **self._whole("chunksize", 2**40))
        except Exception as error:
            if is_refused_creation(error):
                return False
            raise
        return True

    def _remove(self, path: str) -> None:
        filesystem, _ = self._open()
        try:
            filesystem.rm_file(path)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise

    def _whole(self, option: str, value: int) -> dict[str, Any]:
        """An option against s3fs cutting large objects up: one request sees one state of the object."""
        return {option: value} if self.url.startswith("s3") else {}

    def _open(self) -> tuple[Any, str]:
        if self.is_local:  # not by its name: a path may hold `::`, which would name a chain of file systems
            return fsspec.filesystem("file"), self.url
        if not self.url.startswith("s3"):
            return fsspec.core.url_to_fs(self.url)
        # s3fs would remember listings and not see what other workers wrote. It and botocore each try five times; here
        # everything is tried again by one rule, with one bound.
        filesystem, path = fsspec.core.url_to_fs(
            self.url, use_listings_cache=False, config_kwargs={"retries": {"total_max_attempts": 1}}
        )
        filesystem.retries = 1
        return filesystem, path.rstrip("/")

    def _patiently(self, action: str, path: str, call: Callable[[], T], num_tries: int | None = None) -> T:
        """Call, NUM_TRIES times at most: after a transient error wait, twice as long each time, with jitter."""
        num_tries = num_tries or NUM_TRIES
        for attempt in range(num_tries):
            try:
                return call()
            except StorageError:
                raise
            except Exception as error:
                if attempt + 1 < num_tries and is_transient(error):
                    time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))
                    continue
                reason = reason_of(error, num_tries)
                if reason is None:
                    raise
                # What the server answered may repeat the key id: only its kind is told, and the chain is cut.
                raise kind_of(error, action, self.is_local)(f"can't {action} {path}: {reason}") from None
        raise AssertionError("the last attempt returns or raises")


def read_url(url: str, max_bytes: int | None = None) -> bytes:
    """The bytes of the file at a path or URL; raises as `Folder.read`.

    Args:
        url: a path or URL of a file.
        max_bytes: that are read at the most; None for any number.

    Returns:
        All bytes.
    """
    parent, slash, name = url.rpartition("/")
    return Folder(parent or slash or ".").read(name, max_bytes)
