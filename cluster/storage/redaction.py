"""What must not be repeated to a terminal, a log or a file: users, passwords and signatures in addresses, and what a
terminal would obey."""

from __future__ import annotations

import re

# Of every scheme of an address such as `zip://inner::https://user:password@host/x`.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"`<>@]*(?:@[^/\s'\"`<>@]*)*@")
_QUERY = re.compile(r"(://[^\s?'\"`<>]*)\?[^\s'\"`<>]*")
# Control characters but for line ends and tabs, what turns the direction of writing, and halves of characters.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HIDDEN = "***"


def redacted(text: str) -> str:
    """The same text without what stands before the `@` or behind the `?` of an address."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _CREDENTIALS.sub(f"{HIDDEN}@", text))


def plain(text: str) -> str:
    """The same text without what `redacted` hides, and what a terminal would obey: names come from strangers."""
    return _OBEYED.sub("\ufffd", redacted(text))


def has_secret(value: str) -> bool:
    """Whether an address has something that `redacted` hides."""
    return "://" in value and redacted(value) != value
