"""What must not be repeated to a terminal, a log or a file: users, passwords and signatures in addresses."""

from __future__ import annotations

import re

# Of every scheme of an address such as `zip://inner::https://user:password@host/x`.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"`<>@]*(?:@[^/\s'\"`<>@]*)*@")
_QUERY = re.compile(r"(://[^\s?'\"`<>]*)\?[^\s'\"`<>]*")
HIDDEN = "***"


def redacted(text: str) -> str:
    """The same text without what stands before the `@` or behind the `?` of an address."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _CREDENTIALS.sub(f"{HIDDEN}@", text))


def has_secret(value: str) -> bool:
    """Whether an address has something that `redacted` hides."""
    return "://" in value and redacted(value) != value
