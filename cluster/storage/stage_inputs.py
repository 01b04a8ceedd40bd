"""Comparing what a stage was begun with, and what it would be made with now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmwsss.core.errors import InputError


class ChangedInputs(InputError):  # noqa: N818 - the name says what happened
    """A stage was begun in this run with other settings; the line names each of them, then what to do.

    Attributes:
        found: the line without what to do.
        changes: what differs, an entry each.
    """

    def __init__(self, stage: str, changes: Sequence[str], advice: str) -> None:
        self.changes = list(changes)
        self.found = f"{stage} was begun with other settings: {'; '.join(changes)}"
        super().__init__(f"{self.found}; {advice}")


def demand_same(stage: str, was: Mapping[str, Any], now: Mapping[str, Any], advised: str) -> None:
    """Whether a stage may be gone on with.

    Args:
        stage: which one, in words.
        was: its inputs, in the words of this release; JSON.
        now: those that it would have.
        advised: the stage to start again from.

    Raises:
        ChangedInputs: they differ.
    """
    changes = _changes(was, now)
    if changes:
        raise ChangedInputs(
            stage,
            changes,
            f"use another run folder, or start again from there: `fmwsss run RUN_FILE --from {advised}`",
        )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or (key and not value):
        return {key: value}
    return {name: leaf for part in value for name, leaf in _flat(value[part], f"{key}.{part}" if key else part).items()}


def _changes(old: Any, new: Any) -> list[str]:
    was, now = _flat(old), _flat(new)

    def shown(values: dict[str, Any], key: str) -> str:
        """The value of a key, for people.

        Args:
            values: of a stage's inputs.
            key: one of `was` or `now`.
        """
        return json.dumps(values[key], ensure_ascii=False) if key in values else "(not set)"

    return [
        f"{key}: {shown(was, key)} -> {shown(now, key)}"
        for key in sorted(was.keys() | now.keys())
        if key not in was or key not in now or was[key] != now[key]
    ]
