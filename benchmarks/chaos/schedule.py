"""Which fault comes next: each once before any comes again."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence


class Schedule:
    """Draws faults in rounds; one that did not come to pass (there was nothing to kill) is drawn again.

    Args:
        names: of all faults.
        chance: what comes when.

    Attributes:
        happened: how often each came to pass.
    """

    def __init__(self, names: Sequence[str], chance: random.Random) -> None:
        self.happened = dict.fromkeys(names, 0)
        self._chance = chance
        self._waiting: list[str] = []

    def missing(self) -> list[str]:
        """What has not come to pass yet."""
        return [name for name, count in self.happened.items() if not count]

    def draw(self, possible: Collection[str]) -> str | None:
        """The next of those that are possible now; None if there are none."""
        due = [name for name in self._waiting if name in possible]
        if not due:
            # A round more: what is left of the one before comes with it, where it is possible.
            due = self._chance.sample(sorted(possible), len(possible))
            self._waiting += due
        return due[0] if due else None

    def note(self, name: str, has_happened: bool) -> None:
        """What became of a fault that was drawn."""
        self.happened[name] += has_happened
        self._waiting.remove(name)
        if not has_happened:
            self._waiting.append(name)
