"""Fetching one large file: it goes on where it broke off, tries again, and keeps only what has the right sha256."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fmwsss.cluster.models.spec import ModelError

BLOCK_BYTES = 1 << 20
FIRST_WAIT_S = 1.0  # doubled each time
TIMEOUT_S = 20.0  # without a byte
Report = Callable[[int, int | None], None]  # bytes that are here, bytes in all where the server says so
_TEMPORARY_CODES = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(ModelError):
    """A file that could not be fetched; the message has the kind of error and nothing that an address may hide."""


class _Broken(Exception):  # noqa: N818 - it is tried again, and an error only in the end
    pass


def download(url: str, path: Path, sha256: str, report: Report | None = None, num_tries: int = 3) -> None:
    """Fetches a file, from http(s) or whatever fsspec opens.

    What came before a connection broke stays beside it, as `.NAME.part`, also for the next call.

    Args:
        url: of the file.
        path: where it goes, whole and right or not at all.
        sha256: that it must have.
        report: is told how far it is.
        num_tries: so many in a row that bring nothing new are too many.

    Raises:
        DownloadError: no connection, no such file, another sha256, or no space.
    """
    part = path.with_name(f".{path.name}.part")
    furthest, tries, is_patched = 0, 0, part.exists()
    while True:
        try:
            with _Partial(part) as partial:
                try:
                    _receive(url, partial, report)
                except _Broken:
                    # A server may say that there is more than there is.
                    if partial.sha256() != sha256:
                        raise
                found, here = partial.sha256(), partial.num_bytes
            if found == sha256:
                os.replace(part, path)
                return
            part.unlink()
            if not is_patched:
                raise DownloadError(
                    f"what {shown(url)} gives has sha256 {found} ({here} bytes) and not {sha256}: another or a "
                    "damaged file"
                )
            is_patched, furthest = False, 0  # pieces of two files, perhaps: once more from the start
        except _Broken as broken:
            here = part.stat().st_size
            tries = 1 if here > furthest else tries + 1
            furthest, is_patched = max(furthest, here), is_patched or here > 0
            if tries >= num_tries:
                got = f", {here} bytes are here and the next try goes on from there" if here else ""
                raise DownloadError(f"{shown(url)} could not be fetched: {broken}{got}") from None
            time.sleep(FIRST_WAIT_S * 2 ** (tries - 1))
        except OSError as error:
            reason = "no space is left" if error.errno == errno.ENOSPC else os.strerror(error.errno or 0).lower()
            raise DownloadError(f"{path.parent} cannot be written: {reason}") from None


def is_reachable(url: str) -> bool:
    """Whether a server answers at all; some clients try for minutes before they say that none does."""
    try:
        urllib.request.build_opener().open(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except Exception:
        return False
    return True


def shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


class _Partial:
    """What is here of a file, and its sum."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self.num_bytes = path.open("a+b"), hashlib.sha256(), 0
        self._file.seek(0)
        while block := self._file.read(BLOCK_BYTES):
            self._digest.update(block)
            self.num_bytes += len(block)

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, block: bytes) -> None:
        self._file.write(block)
        self._digest.update(block)
        self.num_bytes += len(block)

    def restart(self) -> None:
        self._file.truncate(0)
        self._digest, self.num_bytes = hashlib.sha256(), 0

    def sha256(self) -> str:
        """Of everything, once it is safely on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()


def _receive(url: str, partial: _Partial, report: Report | None) -> None:
    """Adds what is missing; starts anew where the server cannot begin in the middle."""
    begin = partial.num_bytes
    source, at, num_bytes = _open_http(url, begin) if url.startswith(("http://", "https://")) else _open(url, begin)
    with source:
        if at != begin:
            partial.restart()
        while block := _read(source):
            partial.add(block)
            if report:
                report(partial.num_bytes, num_bytes)
    if num_bytes is not None and partial.num_bytes < num_bytes:
        raise _Broken(f"the connection broke after {partial.num_bytes} of {num_bytes} bytes")


def _read(source: Any) -> bytes:
    try:
        return source.read(BLOCK_BYTES)
    except http.client.IncompleteRead as error:
        return error.partial  # the rest is asked for again
    except Exception as error:
        raise _Broken(f"the connection broke ({type(error).__name__})") from None


def _open_http(url: str, begin: int) -> tuple[Any, int, int | None]:
    """The answer, where in the file it begins, and how many bytes the file has."""
    request = urllib.request.Request(url, headers={"User-Agent": "fmwsss"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    try:
        answer = urllib.request.build_opener().open(request, timeout=TIMEOUT_S)  # with the proxies of now
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left, or what is here is of another file: the sum tells
            return io.BytesIO(), begin, None
        if error.code in _TEMPORARY_CODES:
            raise _Broken(f"the server answers {error.code}") from None
        raise DownloadError(f"{shown(url)} could not be fetched: the server answers {error.code}") from None
    except Exception as error:
        reason = getattr(error, "reason", error)
        raise _Broken(f"no connection ({type(reason).__name__})") from None
    length = answer.headers.get("Content-Length", "")
    starts, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if answer.status == 206 and starts.partition("-")[0] == str(begin):
        return answer, begin, int(total) if total.isdecimal() else None
    return answer, 0, int(length) if length.isdecimal() else None


def _open(url: str, begin: int) -> tuple[Any, int, int | None]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        num_bytes = filesystem.size(path)
        source = filesystem.open(path, "rb", cache_type="readahead")
        begin = begin if num_bytes is not None and begin <= num_bytes else 0
        source.seek(begin)
    except FileNotFoundError:
        raise DownloadError(f"{shown(url)} could not be fetched: it does not exist") from None
    except Exception as error:
        # Whatever a client says may repeat what the address holds (a signature, a key): only its kind is told.
        raise _Broken(type(error).__name__) from None
    return source, begin, num_bytes
