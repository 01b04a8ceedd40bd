"""The vocabularies of PASCAL VOC and COCO, and those made from a run file (docs/method.md, M1)."""

from __future__ import annotations

from collections.abc import Sequence

from fmwsss.core.errors import InputError
from fmwsss.core.vocabulary import Vocabulary

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
        ValueError: see `Vocabulary`; or two classes have one prompt, between which no text can tell.
    """
    prompts = classes if prompts is None else prompts
    first: dict[str, str] = {}
    for own, prompt in zip(classes, prompts, strict=False):  # CLIP's tokens have no case and one space
        if (other := first.setdefault(" ".join(prompt.lower().split()), own)) != own:
            raise InputError(f"the classes {other!r} and {own!r} have one prompt, {prompt!r}: give `prompts`")
    if backgrounds is None:
        taken = {word.lower() for text in (*classes, *prompts) for word in text.replace(",", " ").split()}
        backgrounds = [word for word in _BACKGROUNDS if word not in taken]
    return Vocabulary(name, tuple(classes), tuple(prompts), tuple(backgrounds))


def vocabulary_named(name: str) -> Vocabulary:
    """The vocabulary `voc12`, `coco14` or `toy`.

    Raises:
        InputError: there is no other.
    """
    if name == "toy":
        from fmwsss.core.toy.world import TOY

        return TOY
    known = {"voc12": VOC12, "coco14": COCO14}
    if name not in known:
        raise InputError(f"there is no vocabulary {name!r}: use voc12, coco14, toy, or give your own classes")
    return known[name]
