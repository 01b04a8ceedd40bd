"""COCO, class folders, YOLO, Parquet and tars: labels by name, and what is left out is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.images import decode_label_png
from fmwsss.core.vocabularies import COCO14, custom_vocabulary
from fmwsss.jobs.config.datasets import ClassFoldersData, CocoData, FolderData, ParquetData, WebDatasetData, YoloData
from fmwsss.jobs.images.image_rows import Reading, image_row
from fmwsss.jobs.images.readers import json_stream
from fmwsss.jobs.images.readers.base import DatasetError
from fmwsss.jobs.images.readers.registry import read_dataset
from tests.support.image_files import encoded, png

CLASSES = ("person", "toothbrush")
JPEG = encoded(Image.fromarray(np.full((20, 30, 3), 90, np.uint8)), "JPEG")


def square(left: int, top: int, side: int) -> list[list[int]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def coco_json(**changes: Any) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(np.ones((20, 30), np.uint8)))
    counts = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
    told = {
        "info": {"year": 2014, "note": ["a", {"b": 1}]},
        "images": [
            {"id": 9, "file_name": "COCO_9.jpg", "height": 20, "width": 30},
            {"id": 25, "file_name": "train2014/COCO_25.jpg", "height": 20, "width": 30},
            {"id": 30, "file_name": "bär.jpg", "height": 20, "width": 30},
            {"id": 31, "file_name": "not_fetched.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 25, "category_id": 1, "iscrowd": 0, "segmentation": square(2, 2, 4)},
            {"id": 2, "image_id": 9, "category_id": 90, "iscrowd": 0, "segmentation": square(0, 0, 10)},
            {"id": 3, "image_id": 9, "category_id": 1, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": counts}},
            {"id": 4, "image_id": 9, "category_id": 18, "iscrowd": 0, "segmentation": square(20, 10, 5)},
            {"id": 5, "image_id": 25, "category_id": 90, "iscrowd": 0, "segmentation": square(0, 0, 12)},
        ],
        "categories": [{"id": 90, "name": "Toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }  # fmt: skip
    return {**told, **changes}


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path))
    if request.param == "s3":
        folder = Folder(request.getfixturevalue("s3_url")).child(f"kinds/{tmp_path.name}")
    folder.write_many({f"images/{name}": JPEG for name in ("COCO_9.jpg", "COCO_25.jpg", "bär.jpg", "extra.jpg")})
    return folder


def test_coco_by_names_with_crowds_and_painted_truth(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 50)  # every record crosses a piece
    root.write("instances.json", json.dumps(coco_json(), ensure_ascii=False).encode())
    data = CocoData(kind="coco", images=f"{root.url}/images", annotations=f"{root.url}/instances.json")
    listing = read_dataset(data, CLASSES)
    assert {own.image_id: own.classes for own in listing.sources} == {
        "COCO_9": ("toothbrush",),
        "COCO_25": ("person", "toothbrush"),
    }
    told = "\n".join(listing.notes)
    for line in (
        "1 name (such as dog) of categories that are no classes of this run, left out",
        "1 image (such as not_fetched.jpg) of ",
        "1 image (such as extra.jpg) in ",
        "1 crowds are no labels",
        "1 image (such as b%C3%A4r) without labels, left out",
        "'Toothbrush' for 'toothbrush'",
    ):
        assert line in told
    rows = {own.image_id: image_row(vars(own), Reading(custom_vocabulary(CLASSES))) for own in listing.sources}
    first, second = (decode_label_png(rows[name]["truth"]) for name in ("COCO_9", "COCO_25"))
    # The crowd is all over the image, under the toothbrush; the dog, which is no class, does not hide it.
    expected = np.full((20, 30), 255)
    expected[:10, :10] = 2
    np.testing.assert_array_equal(first, expected)
    expected = np.zeros((20, 30))
    expected[:12, :12], expected[2:6, 2:6] = 2, 1  # the small one on top, whatever their order
    np.testing.assert_array_equal(second, expected)


def test_coco_in_the_place_of_a_table(tmp_path: Path) -> None:
    root = Folder(str(tmp_path))
    root.write_many({"images/COCO_9.jpg": JPEG, "instances.json": json.dumps(coco_json()).encode()})
    data = FolderData(kind="folder", images=f"{root.url}/images", labels=f"{root.url}/instances.json")
    (source,) = read_dataset(data, CLASSES).sources
    assert (source.image_id, source.classes, source.truth_url) == ("COCO_9", ("toothbrush",), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(coco_json(annotations=None)), "has no annotations"),
        (json.dumps({"annotations": [], "categories": []}), "has no images"),
        (json.dumps(coco_json(categories=[{"id": 1, "name": "zebra"}])), "no category of .* they are zebra"),
        (json.dumps(coco_json())[:700], "can't be read as COCO's json: it is no JSON|it ends too early"),
        (json.dumps(coco_json(images=[{"id": 1}])), "a record has no 'file_name'"),
        (json.dumps(coco_json(images=2 * coco_json()["images"])), "has the image id 9 twice"),
        (json.dumps(coco_json(images=[{"id": 1, "file_name": "x.jpg"}])), "none of the 1 images of"),
        ("[1, 2]", "it is no JSON at byte 0"),
    ],
)
def test_a_json_that_says_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = Folder(str(tmp_path))
    root.write_many({"images/COCO_9.jpg": JPEG, "x.json": text.encode()})
    with pytest.raises(DatasetError, match=message):
        read_dataset(CocoData(kind="coco", images=f"{root.url}/images", annotations=f"{root.url}/x.json"), CLASSES)


def test_real_coco_photographs_as_pycocotools_reads_them(real: Path) -> None:
    data = CocoData(kind="coco", images=f"{real}/coco/images", annotations=f"{real}/coco/instances.json")
    listing = read_dataset(data, COCO14.classes)
    theirs = COCO(f"{real}/coco/instances.json")
    by_stem = {about["file_name"].rpartition(".")[0]: about for about in theirs.imgs.values()}
    names = {number: about["name"] for number, about in theirs.cats.items()}
    assert len(listing.sources) > 100
    for source in listing.sources:
        about = by_stem[source.image_id]
        annotations = theirs.loadAnns(theirs.getAnnIds(about["id"]))
        things = [own for own in annotations if not own.get("iscrowd")]
        assert set(source.classes or ()) == {names[own["category_id"]] for own in things}
    for source in listing.sources[:12]:
        truth = decode_label_png(image_row(vars(source), Reading(COCO14))["truth"])
        annotations = theirs.loadAnns(theirs.getAnnIds(by_stem[source.image_id]["id"]))
        covered = np.zeros(truth.shape, bool)
        for own in annotations:
            covered |= theirs.annToMask(own) > 0
        np.testing.assert_array_equal(truth > 0, covered)


def test_a_folder_for_each_class(root: Folder) -> None:
    root.write_many(
        {f"sorted/{name}": JPEG for name in ("Person/1.jpg", "tooth brush/1.jpg", "person/x/2.jpg", "no/3.jpg")}
    )
    data = ClassFoldersData(kind="class_folders", images=f"{root.url}/sorted")
    listing = read_dataset(data, ("person", "tooth brush"))
    assert {own.image_id: own.classes for own in listing.sources} == {
        "Person%2F1": ("person",),
        "person%2Fx%2F2": ("person",),
        "tooth%20brush%2F1": ("tooth brush",),
    }
    assert listing.questions == ["the folder no (1 images) is called as no class"]
    with pytest.raises(DatasetError, match="is called as a class: there are "):
        read_dataset(ClassFoldersData(kind="class_folders", images=f"{root.url}/sorted"), ("zebra",))


@pytest.mark.parametrize("entry", ["images/train", "./images/train", ["images/train"], "train.txt", "../images/train"])
def test_yolo_by_names(tmp_path: Path, entry: Any) -> None:
    root = Folder(str(tmp_path))
    root.write_many({f"images/train/{name}.jpg": JPEG for name in ("a", "b/c", "empty", "bare")})
    labels = {"a": "1 0.5 0.5 0.2 0.2\n0 .1 .1 .2 .2 .3 .3\n", "b/c": "2 0.5 0.5 1 1\n0 0 0 1 1\n", "empty": ""}
    root.write_many({f"labels/train/{name}.txt": text.encode() for name, text in labels.items()})
    names = {0: "person", 1: "Toothbrush", 2: "dog"}
    root.write("train.txt", b"".join(b"./images/train/%s.jpg\n" % name for name in (b"a", b"b/c", b"empty", b"bare")))
    root.write("data.yaml", yaml.safe_dump({"path": "/another/machine", "train": entry, "names": names}).encode())
    listing = read_dataset(YoloData(kind="yolo", data=f"{root.url}/data.yaml"), CLASSES)
    expected = {"a": ("toothbrush", "person"), "b%2Fc": ("person",)}
    found = {own.image_id.removeprefix("train%2F"): own.classes for own in listing.sources}
    assert found == expected
    assert listing.num_unlabelled == 2
    with pytest.raises(DatasetError, match="has no set 'val'; it has train"):
        read_dataset(YoloData(kind="yolo", data=f"{root.url}/data.yaml", split="val"), CLASSES)


def test_parquet_with_images_in_it(root: Folder) -> None:
    images = [{"bytes": JPEG, "path": name} for name in ("x/a.jpg", "x/b.jpg", "x/c.jpg")]
    mask = np.zeros((20, 30), np.uint8)
    mask[:4] = 2
    features = {"label": {"names": ["toothbrush", "person"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"image": images, "label": [1, 0, 1], "mask": 3 * [{"bytes": png(mask), "path": None}]})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), buffer, row_group_size=2)
    root.write_many({"data/train-00000-of-00001.parquet": buffer.getvalue(), "data/test-0.parquet": b"other"})
    data = ParquetData(kind="parquet", files=f"{root.url}/data", truth="mask", split="train")
    sources = read_dataset(data, CLASSES).sources
    assert [(own.image_id, own.classes) for own in sources] == [
        ("x%2Fa", ("person",)),
        ("x%2Fb", ("toothbrush",)),
        ("x%2Fc", ("person",)),
    ]
    row = image_row(vars(sources[2]), Reading(custom_vocabulary(CLASSES)))
    assert (row["image"], row["classes"]) == (JPEG, ["person"])
    np.testing.assert_array_equal(decode_label_png(row["truth"]), mask)
    with pytest.raises(
        DatasetError, match=r"has no column 'img' of bytes \(dataset\.image\); it has image, label, mask"
    ):
        read_dataset(data.model_copy(update={"image": "img"}), CLASSES)


def test_parquet_without_names_or_with_a_column_a_class(tmp_path: Path) -> None:
    table = pa.table({"img": [JPEG, JPEG], "person": [1, 0], "toothbrush": [True, True]})
    pq.write_table(table, tmp_path / "part.parquet")
    sources = read_dataset(ParquetData(kind="parquet", files=str(tmp_path / "part.parquet")), CLASSES).sources
    assert [(own.image_id, own.classes) for own in sources] == [
        ("part-000000", ("person", "toothbrush")),
        ("part-000001", ("toothbrush",)),
    ]


def test_tars_of_webdataset(root: Folder) -> None:
    members = {
        "a.jpg": JPEG, "a.json": b'{"labels": ["Person"]}', "sub/b.c.jpg": JPEG, "sub/b.txt": b"person\ntoothbrush\n",
        "e.png": png(np.zeros((9, 9, 3), np.uint8)), "e.cls": b"2", "._a.jpg": b"x", "lonely.json": b"{}",
        "bare.jpg": JPEG,
    }  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    root.write_many({"tars/0.tar": buffer.getvalue(), "packed/0.tar.gz": b""})
    listing = read_dataset(WebDatasetData(kind="webdataset", files=f"{root.url}/tars"), (*CLASSES, "2"))
    found = {own.image_id: own for own in listing.sources}
    assert {name: own.classes for name, own in found.items()} == {
        "a": ("person",), "sub%2Fb": ("person", "toothbrush"), "e": ("2",)
    }  # fmt: skip
    row = image_row(vars(found["a"]), Reading(custom_vocabulary(CLASSES)))
    assert (row["image"], row["classes"]) == (JPEG, ["person"])
    assert listing.num_unlabelled == 1
    with pytest.raises(DatasetError, match="is compressed: images gain nothing"):
        read_dataset(WebDatasetData(kind="webdataset", files=f"{root.url}/packed"), CLASSES)
    root.write("broken/0.tar", buffer.getvalue()[:700])
    with pytest.raises(DatasetError, match="can't be read as a tar"):
        read_dataset(WebDatasetData(kind="webdataset", files=f"{root.url}/broken"), CLASSES)
