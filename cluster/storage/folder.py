"""A folder on a local disk or an object store: whole objects in and out, nothing ever half written.

Only PUT, GET, LIST and DELETE are asked of an object store. A `Folder` is only a URL: credentials and endpoint come
from the environment of the process that opens it (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import errno
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

NUM_TRIES = 9
NUM_TRIES_AT_START = 4  # a mistake in an address should be told soon
# How long a store that is out of order (it restarts, it throttles) is waited for. The first wait is doubled each time.
PATIENCE_S = float(os.environ.get("FMWSSS_PATIENCE_S", "120"))
FIRST_WAIT_S = PATIENCE_S / (2 ** (NUM_TRIES - 1) - 1)
NUM_DELETERS = 16
TRANSIENT_ERRNOS = {
    errno.EBUSY,  # s3fs: SlowDown, 503, 409
    errno.EREMOTEIO,  # s3fs: 500
    errno.EIO,  # s3fs: a code it has no name for (502, 504, "TooManyRequests")
    errno.EAGAIN,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EPIPE,
}
# By name, so that botocore and aiohttp are not imported for a local folder.
TRANSIENT_NAMES = {
    "HTTPClientError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "EndpointConnectionError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "IncompleteRead",
    "ClientError",
    "FSTimeoutError",
}

T = TypeVar("T")


class StorageError(ValueError):
    """Something about a folder that a user can put right; one line, with its URL and what to do."""


class FileError(StorageError):
    """One file that is absent or too large; the folder itself answers."""


@dataclass(frozen=True)
class Folder:
    """A folder named by a local path or by a URL (`s3://bucket/prefix`, or another scheme that fsspec has).

    Small, hashable and picklable: it goes to Ray's workers as it is, and each opens its own connection.

    Raises:
        ValueError: the URL is empty, or has credentials in it.
    """

    url: str

    def __post_init__(self) -> None:
        if not self.url.strip():
            raise ValueError("a folder needs a path or a URL; this one is empty")
        scheme, separator, rest = self.url.partition("://")
        if separator and "@" in rest.partition("/")[0]:
            raise ValueError(f"a {scheme}:// URL has credentials in it; give them by environment variables instead")
        if not separator or scheme == "file":
            # Workers have other working directories than the driver.
            url = os.path.abspath(os.path.expanduser(rest if separator else self.url))
        else:
            url = self.url.rstrip("/")
        object.__setattr__(self, "url", url)

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of a mounted disk."""
        return "://" not in self.url

    def child(self, name: str) -> Folder:
        """The folder `name` (which may be nested: `seeds/coarse`) in this one; it need not exist."""
        return Folder(self._at(name))

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files below this folder that begin with `prefix`, relative to it, sorted; none if it is absent.

        One LIST. Files that are still being written are left out.
        """
        if self.is_local:
            names = list(_walk(Path(self.url), prefix))
        else:

            def find() -> list[str]:
                filesystem, path = self._open()
                # Only s3fs narrows the LIST itself; the filter below is for the others.
                options: dict[str, Any] = {"prefix": prefix} if prefix and self.url.startswith("s3") else {}
                found = filesystem.find(path, **options)
                return [name[len(path) + 1 :] for name in found if name.startswith(path + "/")]

            names = self._patiently("list", self.url, find)
        return sorted(name for name in names if name.startswith(prefix) and not _is_temporary(name))

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
                if _is_missing_bucket(error):
                    raise

        if not self.is_local:
            self._patiently("reach", self.url, look, NUM_TRIES_AT_START)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        path = self._at(name)
        if self.is_local:
            return os.path.isfile(path)

        def info() -> bool:
            try:
                return self._open()[0].info(path)["type"] == "file"
            except FileNotFoundError as error:
                if _is_missing_bucket(error):
                    raise
                return False

        return self._patiently("look up", path, info)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """The bytes of a file.

        Raises:
            FileError: there is none, or it is larger than `max_bytes` and is not read.
            StorageError: it can't be read.
        """
        path = self._at(name)

        def read() -> bytes:
            filesystem, _ = self._open()
            if max_bytes is not None and (size := filesystem.size(path)) > max_bytes:
                raise FileError(f"{path} has {size} bytes, more than the {max_bytes} that are allowed")
            return filesystem.cat_file(path, **self._whole("max_concurrency", 1))

        return self._patiently("read", path, read)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, or not at all; one that is there is replaced."""
        path = self._at(name)
        if self.is_local:
            self._patiently("write", path, lambda: _write_local(path, data))
        else:
            self._patiently(
                "write", path, lambda: self._open()[0].pipe_file(path, data, **self._whole("chunksize", 2**40))
            )

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write several files, each whole or not at all; in bulk on an object store."""
        if self.is_local:
            for name, data in files.items():
                self.write(name, data)
        elif files:
            paths = {self._at(name): data for name, data in files.items()}
            self._patiently("write", self.url, lambda: self._open()[0].pipe(paths, **self._whole("chunksize", 2**40)))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file as a table; only the bytes of the columns that are asked for travel."""
        path = self._at(name)

        def read() -> pa.Table:
            filesystem, _ = self._open()
            if columns is None:
                return pq.read_table(BytesIO(filesystem.cat_file(path, **self._whole("max_concurrency", 1))))
            with filesystem.open(path, "rb", cache_type="none") as file:
                return pq.read_table(file, columns=list(columns), pre_buffer=True)

        return self._patiently("read", path, read)

    def num_rows(self, name: str) -> int:
        """How many rows a Parquet file has; only its footer travels."""
        path = self._at(name)

        def read() -> int:
            filesystem, _ = self._open()
            with filesystem.open(path, "rb", cache_type="none") as file:
                return pq.read_metadata(file).num_rows

        return self._patiently("read", path, read)

    def write_table(self, name: str, table: pa.Table | Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Write a table, or rows, as a Parquet file of this schema; the same rows give the same bytes."""
        given: Any = table  # pyarrow has no types that a checker could narrow by
        rows = given if isinstance(given, pa.Table) else pa.Table.from_pylist([*given], schema=schema)
        sink = BytesIO()
        # Encoded images and ids don't repeat: a dictionary would only cost time.
        pq.write_table(rows.select(schema.names).cast(schema), sink, compression="zstd", use_dictionary=False)
        self.write(name, sink.getvalue())

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; a name that is absent is no error."""
        paths = [self._at(name) for name in names]

        def delete(path: str) -> None:
            self._patiently("delete", path, lambda: self._remove(path))

        # One request each: deleting many at once is more than every object store can do.
        with ThreadPoolExecutor(1 if self.is_local else NUM_DELETERS) as pool:
            list(pool.map(delete, paths))

    def delete_all(self) -> None:
        """Delete every file below this folder."""
        self.delete(self.list())

    def _at(self, name: str) -> str:
        parts = name.split("/")
        if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{name!r} is no name inside {self.url}: it may not be empty, absolute or hold `..`")
        return f"{self.url.rstrip('/')}/{name}"

    def _remove(self, path: str) -> None:
        filesystem, _ = self._open()
        try:
            filesystem.rm_file(path)
        except FileNotFoundError as error:
            if _is_missing_bucket(error):
                raise

    def _whole(self, option: str, value: int) -> dict[str, Any]:
        """An option against s3fs cutting large objects up: one request sees one state of the object."""
        return {option: value} if self.url.startswith("s3") else {}

    def _open(self) -> tuple[Any, str]:
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
            except pa.ArrowInvalid as error:
                raise StorageError(f"can't {action} {path}: it is no Parquet file with these columns") from error
            except StorageError:
                raise
            except Exception as error:
                if attempt + 1 < num_tries and _is_transient(error):
                    time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))
                    continue
                reason = _reason(error, num_tries)
                if reason is None:
                    raise
                is_missing = isinstance(error, FileNotFoundError) and not _is_missing_bucket(error)
                # What the server answered may repeat the key id: only its kind is told, and the chain is cut.
                raise (FileError if is_missing else StorageError)(f"can't {action} {path}: {reason}") from None
        raise AssertionError("the last attempt returns or raises")


def read_url(url: str, max_bytes: int | None = None) -> bytes:
    """The bytes of the file at a path or URL; raises as `Folder.read`."""
    parent, slash, name = url.rpartition("/")
    return Folder(parent or slash or ".").read(name, max_bytes)


def _walk(base: Path, prefix: str) -> Iterator[str]:
    """Names of the files below a folder; folders that can hold none with this prefix are not looked into."""
    for parent, folders, files in os.walk(base):
        above = Path(parent).relative_to(base).as_posix() + "/" if Path(parent) != base else ""
        folders[:] = [
            name for name in folders if f"{above}{name}/".startswith(prefix) or prefix.startswith(f"{above}{name}/")
        ]
        yield from (above + file for file in files)


def _write_local(path: str, data: bytes) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_temporary(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(".tmp")


def _is_missing_bucket(error: BaseException) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") == "NoSuchBucket"


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, (PermissionError, FileNotFoundError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & TRANSIENT_NAMES) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS)


def _reason(error: BaseException, num_tries: int) -> str | None:
    """What to tell the user; None for what is no fault of a folder (a mistake of ours), which keeps its traceback."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on every node"
    if isinstance(error, FileNotFoundError):
        if _is_missing_bucket(error):
            return "the bucket does not exist; create it, or check its name and AWS_ENDPOINT_URL"
        return "it does not exist; check the path"
    if isinstance(error, PermissionError):
        return "access is refused; check the credentials in the environment and who may use this place"
    if isinstance(error, ImportError):
        return "its scheme needs a package that is not installed"
    if "EndpointConnectionError" in names or isinstance(error, ConnectionError):
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        where = f" at {endpoint.hostname}:{endpoint.port}" if endpoint.hostname else ""
        return f"no answer{where} after {num_tries} tries; check the network and AWS_ENDPOINT_URL"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left there"
    if _is_transient(error):
        return f"still failing after {num_tries} tries ({type(error).__name__}); try again later"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else type(error).__name__
    return None
