"""Class names, the words that stand for them in a prompt, and the background words (method M1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
            raise ValueError(f"vocabulary {self.name!r} has no class")
        if len(self.classes) > 254:
            raise ValueError(f"vocabulary {self.name!r} has {len(self.classes)} classes; 8-bit label maps hold 254")
        if len(self.prompts) != len(self.classes):
            raise ValueError(
                f"vocabulary {self.name!r} has {len(self.classes)} classes but {len(self.prompts)} prompts"
            )
        for words, kind in ((self.classes, "class"), (self.prompts, "prompt"), (self.backgrounds, "background")):
            for word in words:
                if not word.strip():
                    raise ValueError(f"vocabulary {self.name!r} has an empty {kind} name")
                if kind != "prompt" and words.count(word) > 1:
                    raise ValueError(f"vocabulary {self.name!r} has the {kind} name {word!r} twice")
        for word in self.classes:
            if word in self.backgrounds:
                raise ValueError(f"vocabulary {self.name!r} has {word!r} both as a class and as a background")

    def index(self, class_name: str) -> int:
        """Class index (1-based) of a name; ValueError names the nearest known class."""
        try:
            return self.classes.index(class_name) + 1
        except ValueError:
            near = difflib.get_close_matches(class_name, self.classes, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known classes: {', '.join(self.classes[:30])}"
            raise ValueError(f"{class_name!r} is not a class of the vocabulary {self.name!r}{hint}") from None

    def indices(self, names: Iterable[str]) -> tuple[int, ...]:
        """Class indices (1-based) of several names, in their order."""
        return tuple(self.index(name) for name in names)


_BACKGROUND_WORDS = (
    "ground land grass tree building wall sky lake water river sea railway railroad keyboard helmet cloud house "
    "mountain ocean road rock street valley bridge sign"
)
_BACKGROUNDS = tuple(_BACKGROUND_WORDS.split())


def _with_synonyms(name: str, classes: str, synonyms: dict[str, str], backgrounds: tuple[str, ...]) -> Vocabulary:
    names = tuple(classes.split("|"))
    assert set(synonyms) <= set(names), set(synonyms) - set(names)
    return Vocabulary(name, names, tuple(synonyms.get(word, word) for word in names), backgrounds)


VOC12 = _with_synonyms(
    "voc12",
    "aeroplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|diningtable|dog|horse|motorbike|person|pottedplant|"
    "sheep|sofa|train|tvmonitor",
    {
        "bird": "bird avian",
        "chair": "chair seat",
        "person": "person with clothes,people,human",
        "tvmonitor": "tvmonitor screen",
    },
    _BACKGROUNDS,
)

COCO14 = _with_synonyms(
    "coco14",
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|"
    "bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|"
    "skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|"
    "cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|"
    "refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush",
    {
        "person": "person with clothes,people,human",
        "motorcycle": "motorbike",
        "airplane": "aeroplane",
        "bird": "bird avian",
        "backpack": "backpack,bag",
        "umbrella": "umbrella,parasol",
        "handbag": "handbag,purse",
        "tie": "necktie",
        "baseball glove": "glove",
        "spoon": "dessertspoon",
        "chair": "chair seat",
        "couch": "sofa",
        "potted plant": "pottedplant",
        "dining table": "diningtable",
        "tv": "tvmonitor screen",
        "remote": "remote control",
        "hair drier": "hairdrier,blowdrier",
    },
    # "keyboard" is a class there and "sign" is part of one ("stop sign").
    tuple(word for word in _BACKGROUNDS if word not in ("keyboard", "sign")),
)


def custom_vocabulary(
    classes: Sequence[str],
    prompts: Sequence[str] | None = None,
    backgrounds: Sequence[str] | None = None,
    name: str = "custom",
) -> Vocabulary:
    """A vocabulary of one's own.

    Args:
        classes: F class names, in the order of their indices 1..F.
        prompts: F prompt strings; the class names when None.
        backgrounds: background words; when None those of VOC (M1) less every word that occurs in a class or prompt,
            because a background word that names a class would compete with it.
        name: short name of the vocabulary.

    Raises:
        ValueError: see `Vocabulary`.
    """
    prompts = classes if prompts is None else prompts
    if backgrounds is None:
        taken = {word.lower() for text in (*classes, *prompts) for word in text.replace(",", " ").split()}
        backgrounds = [word for word in _BACKGROUNDS if word not in taken]
    return Vocabulary(name, tuple(classes), tuple(prompts), tuple(backgrounds))


def vocabulary_named(name: str) -> Vocabulary:
    """The vocabulary `voc12`, `coco14` or `toy`; ValueError for another name."""
    if name == "toy":
        from fmwsss_core.toy.world import TOY

        return TOY
    known = {"voc12": VOC12, "coco14": COCO14}
    if name not in known:
        raise ValueError(f"there is no vocabulary {name!r}: use voc12, coco14, toy, or give your own classes")
    return known[name]
