"""A large JSON file read one record at a time, in bounded memory, with the place of each record in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from fmwsss.core.errors import InputError

PIECE_BYTES = 4 << 20
MAX_RECORD_BYTES = 256 << 20
_SPACES = " \t\r\n"


class JsonStream:
    """The top level of a JSON object: its keys in their order, and the records of its lists one after the other.

    Bytes are taken for letters one by one (as latin-1), so that a place in the text is one in the file; JSON's own
    marks are ASCII, and `text_of` turns names back. Python's own scanner, which is C, reads each record.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._text, self._offset, self._at = (
            "",
            0,
            0,
        )  # letters in hand, where they begin in the file, how many are read
        self._is_end = False
        self._decode = json.JSONDecoder().raw_decode
        if self._peek() == "\xef":  # a byte order mark
            self._at += 3
        self._demand("{")

    def keys(self) -> Iterator[str]:
        """The keys; each one's value is read by `records` or `value`, before the next is asked for.

        Raises:
            ValueError: it is no JSON, or ends too early.
        """
        if self._peek() == "}":
            return
        while True:
            key, _, _ = self._record()
            self._demand(":")
            yield text_of(str(key))
            if self._peek() == "}":
                return
            self._demand(",")

    def value(self) -> Any:
        """The value of the key that was told last."""
        return self._record()[0]

    def is_list(self) -> bool:
        """Whether the value of the key that was told last is a list."""
        return self._peek() == "["

    def records(self) -> Iterator[tuple[Any, int, int]]:
        """The records of a list, each with its offset in the file and its number of bytes."""
        self._demand("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self._record()
            if self._peek() == "]":
                self._at += 1
                return
            self._demand(",")

    def _record(self) -> tuple[Any, int, int]:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number at the end of what is in hand may go on.
                if end < len(self._text) or self._is_end:
                    break
            except ValueError:
                if self._is_end or len(self._text) - self._at > MAX_RECORD_BYTES:
                    raise InputError(f"it is no JSON from byte {self._offset + self._at} on") from None
            self._more()
        begin, self._at = self._at, end
        return value, self._offset + begin, end - begin

    def _peek(self) -> str:
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACES:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_end:
                raise InputError("it ends too early")
            self._more()

    def _demand(self, mark: str) -> None:
        if self._peek() != mark:
            raise InputError(f"it is no JSON at byte {self._offset + self._at}")
        self._at += 1

    def _more(self) -> None:
        # What is read is dropped, so that a file of any size needs a few pieces; a long record doubles them.
        piece = self._file.read(max(PIECE_BYTES, len(self._text) - self._at))
        self._is_end = not piece
        self._text = self._text[self._at :] + piece.decode("latin-1")
        self._offset, self._at = self._offset + self._at, 0


def text_of(text: str) -> str:
    """A name as it was meant, from one whose bytes were taken for letters."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text  # it was written with escapes
