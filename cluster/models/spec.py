"""How a run file names a network."""

from __future__ import annotations

from dataclasses import dataclass

from fmwsss.core.errors import InputError


class ModelError(InputError):
    """A model that cannot be had as the run file asks for it; the message says what to do."""


@dataclass(frozen=True)
class ModelSpec:
    """A network as a run file names it.

    Attributes:
        model: `toy`, an open_clip architecture, or a segment-anything type (`vit_b`, `vit_l`, `vit_h`).
        weights: an open_clip tag, a path, or an s3:// or https:// URL (then with `sha256`).
        sha256: what the file must hash to; checked before it is read.
        factory: `package.module:function`, called without arguments, in place of all the others; returns what the
            library's own constructor returns.
    """

    model: str | None = None
    weights: str | None = None
    sha256: str | None = None
    factory: str | None = None
