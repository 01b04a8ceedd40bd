"""Lists of PASCAL VOC of both kinds, and where their ground truth is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwsss.jobs.images.readers.base import DatasetError, Source
from fmwsss.jobs.images.readers.voc import read_voc


def voc(root: Path, lists: dict[str, str], masks: dict[str, list[str]]) -> str:
    for name, text in lists.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder, ids in masks.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for image_id in ids:
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / folder / f"{image_id}.png")
    return str(root)


def truths(sources: list[Source], root: str) -> dict[str, str | None]:
    return {own.image_id: own.truth_url and own.truth_url.removeprefix(f"{root}/") for own in sources}


SETS = "ImageSets/Segmentation"


def test_trainaug_lists_name_image_and_mask(tmp_path: Path) -> None:
    lines = "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n\n/JPEGImages/2008_1.jpg\n"
    masks = {"SegmentationClass": ["2007_000032"], "SegmentationClassAug": ["2007_000032", "2008_1"]}
    root = voc(tmp_path, {f"{SETS}/trainaug.txt": lines, "lists/train_aug.txt": lines}, masks)
    for split in ("trainaug", "lists/train_aug.txt"):
        sources = read_voc(root, split).sources
        assert [own.image_url for own in sources] == [
            f"{root}/JPEGImages/{name}.jpg" for name in ("2007_000032", "2008_1")
        ]
        assert truths(sources, root) == {
            "2007_000032": "SegmentationClassAug/2007_000032.png",
            "2008_1": "SegmentationClassAug/2008_1.png",
        }


def test_one_list_has_one_ground_truth(tmp_path: Path) -> None:
    """Ids alone: SegmentationClass where it has all of them, else the folder of SBD; else a mask of either."""
    masks = {"SegmentationClass": ["a", "b"], "SegmentationClassAug": ["a", "b", "c"]}
    texts = {"train": "a\nb\n", "aug": "a\nc\n", "more": "a\nd\n"}
    lists = {f"{SETS}/{name}.txt": text for name, text in texts.items()}
    root = voc(tmp_path, lists, masks)
    assert truths(read_voc(root, "train").sources, root) == {
        "a": "SegmentationClass/a.png",
        "b": "SegmentationClass/b.png",
    }
    assert truths(read_voc(root, "aug").sources, root) == {
        "a": "SegmentationClassAug/a.png",
        "c": "SegmentationClassAug/c.png",
    }
    more = read_voc(root, "more").sources
    assert truths(more, root) == {"a": "SegmentationClass/a.png", "d": None}
    assert more[1].problem == "has no labels: there is neither an annotation nor a mask"


def test_a_list_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    root = voc(tmp_path, {f"{SETS}/train.txt": "/JPEGImages/../../secret.jpg /SegmentationClass/x.png\n"}, {})
    assert read_voc(root, "train").sources[0].problem == "its line in the list leads out of the folder"
    with pytest.raises(DatasetError, match=r"there is no list lists/val\.txt in"):
        read_voc(root, "lists/val.txt")
    with pytest.raises(DatasetError, match="there is no split 'val'"):
        read_voc(root, "val")
