"""What a storage may answer, and what of it a user is told: one line, without secrets."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from fmwsss.core.errors import InputError

TRANSIENT_ERRNOS = {
    errno.EBUSY,  # s3fs: SlowDown, 503, 409
    errno.EREMOTEIO,  # s3fs: 500
    errno.EIO,  # s3fs: a code it has no name for (502, 504, "TooManyRequests")
    errno.EAGAIN,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EPIPE,
}
OF_MACHINE = {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE}
# Classes by their modules: those that nobody imported, for a local folder say, raise nothing.
Kinds = Mapping[str, Sequence[str]]
_TRANSIENT: Kinds = {
    "botocore.exceptions": ("HTTPClientError", "ConnectionError", "IncompleteReadError"),
    "aiohttp": ("ClientError",),
    "asyncio": ("IncompleteReadError",),
    "http.client": ("IncompleteRead",),
}
_WITHOUT_CREDENTIALS: Kinds = {
    "botocore.exceptions": ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
}
_WITHOUT_ENDPOINT: Kinds = {"botocore.exceptions": ("ConnectionError",)}
_TRANSIENT_STATUS = (408, 409, 429)  # and everything from 500 on

_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}


class StorageError(InputError):
    """Something about a folder that a user can put right; one line, with its URL and what to do."""


class FileError(StorageError):
    """One file that is absent or too large; the folder itself answers."""


class RefusedFile(StorageError):  # noqa: N818 - the name says what happened
    """One file that can't be read though it is there: no permission, a pipe, a damaged sector."""


class DamagedFile(StorageError):  # noqa: N818 - the name says what happened
    """One file whose bytes are not those that were written."""


_no_times: dict[str, str] = {}  # variable -> what it says


def seconds_from(variable: str, default: float) -> float:
    """A time that the environment may set; modules ask for theirs when they are imported.

    Args:
        variable: its name.
        default: seconds where it is not set, or empty, or no number above 0: then `demand_times` refuses it.

    Returns:
        Seconds, more than 0.
    """
    text = os.environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    _no_times[variable] = text
    return default


def demand_times() -> None:
    """Refuses times of the environment that are none.

    Raises:
        InputError: one is no number of seconds above 0.
    """
    for variable, text in _no_times.items():
        raise InputError(f"the environment has {variable}={text!r}: it is to be a number of seconds above 0")


def is_missing_bucket(error: BaseException) -> bool:
    """Whether it is not the object but its bucket that is absent."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") == "NoSuchBucket"


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, (PermissionError, FileNotFoundError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
        return True
    return _is_one_of(error, _TRANSIENT) or _is_of_transient_status(error)


def _is_one_of(error: BaseException, kinds: Kinds) -> bool:
    imported = [(sys.modules[module], names) for module, names in kinds.items() if module in sys.modules]
    return isinstance(error, tuple(getattr(module, name) for module, names in imported for name in names))


def _is_of_transient_status(error: BaseException) -> bool:
    """Of an answer that s3fs has no error of the system for."""
    if not _is_one_of(error, {"botocore.exceptions": ("ClientError",)}):
        return False
    status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in _TRANSIENT_STATUS or status >= 500


def reason_of(error: BaseException, num_tries: int) -> str | None:
    """What to tell the user; None for what is no fault of a folder (a mistake of ours), which keeps its traceback.

    Args:
        error: what the storage raised.
        num_tries: how often it was tried.

    Returns:
        The end of a line, without secrets.
    """
    if _is_one_of(error, _WITHOUT_CREDENTIALS):
        return (
            "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or for a public "
            "bucket FSSPEC_S3_ANON=true"
        )
    if isinstance(error, FileNotFoundError):
        if is_missing_bucket(error):
            return "the bucket does not exist; create it, or check its name and AWS_ENDPOINT_URL"
        return "it does not exist; check the path"
    if isinstance(error, PermissionError):
        return "access is refused; check the credentials in the environment and who may use this place"
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return "its scheme is not known; folders are paths or URLs such as s3://bucket/folder"
    if isinstance(error, ImportError):
        extra = next((extra for package, extra in _EXTRAS.items() if package in str(error)), None)
        install = f"; `pip install 'fmwsss[{extra}]'`, on every node" if extra else ""
        return f"its scheme needs a package that is not installed{install}"
    if isinstance(error, ConnectionError) or _is_one_of(error, _WITHOUT_ENDPOINT):
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        where = f" at {endpoint.hostname}:{endpoint.port}" if endpoint.hostname else ""
        return f"no answer{where} after {num_tries} tries; check the network and AWS_ENDPOINT_URL"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left there"
    if is_transient(error):
        return f"still failing after {num_tries} tries ({type(error).__name__}); try again later"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else type(error).__name__
    return None


def kind_of(error: BaseException, action: str, is_local: bool) -> type[StorageError]:
    """Whose fault an error is that `reason_of` has words for: one file's, or the whole storage's.

    Args:
        error: what the storage raised.
        action: `read`, `write`, `list` or `delete`.
        is_local: whether the folder is on a disk.

    Returns:
        The class that is raised.
    """
    if isinstance(error, FileNotFoundError):
        return StorageError if is_missing_bucket(error) else FileError
    is_of_file = isinstance(error, OSError if is_local else PermissionError)
    machine = isinstance(error, OSError) and error.errno in OF_MACHINE
    return RefusedFile if action == "read" and is_of_file and not machine else StorageError


def is_refused_creation(error: BaseException) -> bool:
    """Whether an object was not created because there is one of its name."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412")
