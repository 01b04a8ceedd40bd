"""Class names, the words that stand for them in a prompt, and the background words (method M1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fmwsss.core.errors import InputError

HANDMADE_TEMPLATE = "a clean origami {}."


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set. Class index 0 is background, 1..F are `classes` in order (method M1).

    Attributes:
        name: short name, written into runs and saved prompts.
        classes: F names as the data set writes them.
        prompts: F strings, the words put into a text prompt for each class.
        backgrounds: words for what surrounds objects; none of them names a class.

    Raises:
        ValueError: no class, a name twice, an empty string, or not one prompt per class.
    """

    name: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    backgrounds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise InputError(f"vocabulary {self.name!r} has no class")
        if len(self.classes) > 254:
            raise InputError(f"vocabulary {self.name!r} has {len(self.classes)} classes; 8-bit label maps hold 254")
        if len(self.prompts) != len(self.classes):
            raise InputError(
                f"vocabulary {self.name!r} has {len(self.classes)} classes but {len(self.prompts)} prompts"
            )
        for words, kind in ((self.classes, "class"), (self.prompts, "prompt"), (self.backgrounds, "background")):
            for word in words:
                if not word.strip():
                    raise InputError(f"vocabulary {self.name!r} has an empty {kind} name")
                if kind != "prompt" and words.count(word) > 1:
                    raise InputError(f"vocabulary {self.name!r} has the {kind} name {word!r} twice")
        for word in self.classes:
            if word in self.backgrounds:
                raise InputError(f"vocabulary {self.name!r} has {word!r} both as a class and as a background")

    def index(self, class_name: str) -> int:
        """Class index (1-based) of a name.

        Raises:
            InputError: it is no class; the nearest one is named.
        """
        try:
            return self.classes.index(class_name) + 1
        except ValueError:
            near = difflib.get_close_matches(class_name, self.classes, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known classes: {', '.join(self.classes[:30])}"
            raise InputError(f"{class_name[:80]!r} is not a class of the vocabulary {self.name!r}{hint}") from None

    def indices(self, names: Iterable[str]) -> tuple[int, ...]:
        """Class indices (1-based) of several names, in their order."""
        return tuple(self.index(name) for name in names)
