"""Names of classes as people write them, found among those of the vocabulary."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable

from fmwsss.jobs.images.readers.base import NUM_EXAMPLES

BACKGROUND = {"background", "_background_", "__background__", "bg"}
_INVISIBLE = str.maketrans("", "", "\u200b\u200c\u200d\u2060\ufeff")


class ClassNames:
    """The classes of a run, and what names of a dataset were taken for which of them.

    Case, spaces, underscores and hyphens are forgiven where only one class fits; what was forgiven is told once.
    """

    def __init__(self, classes: Iterable[str] = ()) -> None:
        """Without classes every name is taken as it is, less the spaces around it."""
        self.classes = tuple(classes)
        self._exact = set(self.classes)
        self._loose: dict[str, set[str]] = {}
        for name in self.classes:
            self._loose.setdefault(_loosely(name), set()).add(name)
        self._forgiven: dict[str, str] = {}
        self._unknown: Counter[str] = Counter()
        self._num_background = 0

    def find(self, name: str) -> str | None:
        """The class that a name stands for; None if there is none."""
        name = clean(name)
        if name in self._exact or not self.classes:
            return name
        fitting = self._loose.get(_loosely(name), set())
        if len(fitting) == 1:
            self._forgiven[name] = next(iter(fitting))
            return self._forgiven[name]
        return None

    def read(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes for the labels of one image, each once; a name that is no class stays as it is, and is told."""
        found: dict[str, None] = {}
        for name in names:
            own = self.find(name)
            if own is None and _loosely(name) in BACKGROUND:
                self._num_background += 1
                continue
            if own is None:
                own = clean(name)
                self._unknown[own] += 1
            found[own] = None
        return tuple(found)

    def notes(self) -> list[str]:
        """What was forgiven, a line each."""
        told = []
        if self._forgiven:
            pairs = [f"{name!r} for {own!r}" for name, own in sorted(self._forgiven.items())]
            more = f" and {len(pairs) - NUM_EXAMPLES} more" if len(pairs) > NUM_EXAMPLES else ""
            told.append(
                f"names of classes that differ in case or spaces are taken: {', '.join(pairs[:NUM_EXAMPLES])}{more}"
            )
        if self._num_background:
            told.append(f"the label background ({self._num_background} images) is left out: every image has some")
        return told

    def questions(self) -> list[str]:
        """Labels that are no classes, the most frequent first, a line each."""
        told = []
        for name, count in self._unknown.most_common(NUM_EXAMPLES):
            near = difflib.get_close_matches(name, self.classes, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"classes are {', '.join(self.classes[:8])}"
            told.append(f"the label {name[:60]!r} ({count} images) is no class of this run: {hint}")
        if len(self._unknown) > NUM_EXAMPLES:
            told.append(f"{len(self._unknown) - NUM_EXAMPLES} more labels are no classes of this run")
        return told


def clean(name: str) -> str:
    """A name without what can't be seen and without spaces around it."""
    return " ".join(unicodedata.normalize("NFC", name).translate(_INVISIBLE).split())


def _loosely(name: str) -> str:
    words = unicodedata.normalize("NFKC", clean(name)).casefold().replace("_", " ").replace("-", " ").split()
    return " ".join(words) or clean(name).casefold()
