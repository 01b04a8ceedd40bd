"""Bytes that carry their own hash, for files that no receipt tells of while they are needed."""

from __future__ import annotations

import hashlib

from fmwsss.cluster.storage.storage_errors import DamagedFile

_WORD = b"sha256 "
_HEAD_BYTES = len(_WORD) + 64 + 1


def sealed(data: bytes) -> bytes:
    """The bytes, with a line before them that holds their hash."""
    return _WORD + hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def unsealed(data: bytes, name: str) -> bytes:
    """The bytes that `sealed` got; those of an earlier release have no seal, and come as they are.

    Args:
        data: content with or without a seal.
        name: of the file, for the message.

    Returns:
        The content.

    Raises:
        DamagedFile: they are others; `name` is for the error.
    """
    if not data.startswith(_WORD):
        return data
    told, content = data[len(_WORD) : _HEAD_BYTES - 1], data[_HEAD_BYTES:]
    if hashlib.sha256(content).hexdigest().encode() != told:
        raise DamagedFile(f"{name} is damaged: its bytes are not those that were written")
    return content
