"""The vocabularies against the facts of method M1, and the errors a user can meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmwsss.core.vocabularies import COCO14, VOC12, custom_vocabulary, vocabulary_named
from fmwsss.core.vocabulary import Vocabulary


def test_published_sizes_and_places():
    assert (len(VOC12.classes), len(VOC12.backgrounds)) == (20, 25)
    assert (len(COCO14.classes), len(COCO14.backgrounds)) == (80, 23)
    assert VOC12.indices(["aeroplane", "person", "tvmonitor"]) == (1, 15, 20)
    assert COCO14.indices(["person", "toothbrush"]) == (1, 80)
    assert VOC12.prompts[VOC12.index("chair") - 1] == "chair seat"
    assert COCO14.prompts[COCO14.index("snowboard") - 1] == "snowboard"
    assert not set(VOC12.backgrounds) - set(COCO14.backgrounds) - {"keyboard", "sign"}


def test_coco_names_are_those_of_the_annotation_file(real: Path):
    names = [line.strip() for line in (real / "coco" / "class_names.txt").read_text().splitlines() if line.strip()]
    known = set(COCO14.classes)
    assert [name for name in names if name in known] == list(COCO14.classes)


def test_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"'areoplane' is not a class .*'voc12'; did you mean 'aeroplane'\?"):
        VOC12.index("areoplane")
    with pytest.raises(ValueError, match="known classes: aeroplane, bicycle"):
        VOC12.index("qqqq")


def test_custom_backgrounds_avoid_the_classes():
    vocabulary = custom_vocabulary(["road", "stop sign", "cat"])
    assert vocabulary.prompts == vocabulary.classes
    assert "road" not in vocabulary.backgrounds
    assert "sign" not in vocabulary.backgrounds
    assert "sky" in vocabulary.backgrounds
    assert custom_vocabulary(["a"], ["b c"], ["d"]) == Vocabulary("custom", ("a",), ("b c",), ("d",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], None, None), "no class"),
        ((["a", "a"], None, None), "'a' twice"),
        ((["a"], ["x", "y"], None), "1 classes but 2 prompts"),
        ((["a", " "], None, None), "empty class"),
        ((["a"], None, ["a"]), "both as a class and as a background"),
        (([str(i) for i in range(255)], None, None), "8-bit"),
    ],
)
def test_bad_vocabularies_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        custom_vocabulary(*arguments)


def test_named():
    assert vocabulary_named("voc12") is VOC12
    assert vocabulary_named("coco14") is COCO14
    with pytest.raises(ValueError, match="no vocabulary 'voc'"):
        vocabulary_named("voc")
