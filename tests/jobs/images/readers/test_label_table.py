"""Tables of labels in every form that people have them: what is read, what is told, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmwsss.jobs.images.readers.base import DatasetError, Listing
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.folder import read_folder
from fmwsss.jobs.images.readers.image_files import find_images

CLASSES = ("person", "horse", "car")
ABC = ("a.jpg", "b.jpg", "c.jpg")


def listing(
    root: Path,
    table: str | bytes,
    names: tuple[str, ...] = ABC,
    kind: str = "csv",
    classes: tuple[str, ...] = CLASSES,
    **options: Any,
) -> Listing:
    for name in names:
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "photos" / name).write_bytes(b"")
    file = root / f"labels.{kind}"
    if table:
        file.write_bytes(table if isinstance(table, bytes) else table.encode())
    return read_folder(str(root / "photos"), str(file), None, ClassNames(classes), **options)


def found(read: Listing) -> dict[str, tuple[str, ...] | None]:
    return {own.image_id: own.classes for own in read.sources if not own.problem}


EXPECTED = {"a": ("person",), "b": ("person", "car"), "c": ("horse",)}
LONG = "image_id,class\na,person\nb,person\nb,car\nc,horse\n"


@pytest.mark.parametrize(
    "table",
    [
        "image_id,classes\na,person\nb,person;car\nc,horse\n",
        "\ufeffimage_id,classes\r\na,person\r\nb,person|car\r\nc,horse\r\n",
        "image_id,classes\na,person\nb,person;car\nc,horse\n".encode("utf-16"),
        "image_id,classes\na,person\nb,person;car\nc,horse\n".encode("utf-16-le"),
        "sep=;\nimage_id;classes\na;person\nb;person,car\nc;horse\n",
        "image_id\tclasses\na\tperson\nb\tperson,car\nc\thorse\n",
        "# made by hand\n\nImage ID, Labels\na, person\nb,\"person, car\"\n\nc, horse\n,\n",
        "filename,label\na.jpg,Person\nb.JPG,PERSON; Car\nphotos/c.png,horse \n",
        LONG,
        "image_id,label,count\na,person,2\na,horse,0\nb,person,1\nb,car,4\nc,horse,1\n",
        "ImageID,Source,LabelName,Confidence\na,x,person,1\na,x,car,0\nb,x,person,1\nb,x,car,1\nc,x,horse,1\n",
        "image,person,Horse,car,weather\na,1,0,0,3\nb,1,,1,2\nc,0,2,-1,1\n",
        "image,person,horse,car\na,True,False,False\nb,yes,no,yes\nc,,x,\n",
        "image_id,label_1,label_2\na,person,\nb,person,car\nc,horse,\n",
        'image_id,classes\na,"[""person""]"\nb,"[\'person\', \'car\']"\nc,"{""choices"": [""horse""]}"\n',
        "image_id,classes\na,person\u00a0\nb,\u200bperson；car\nc,horse;background\n",
        "image_id,classes\na,1\nb,1;3\nc,2\n",
        "image_id,classes\na,person\nb,person car\nc,horse\n",
    ],
)  # fmt: skip
def test_one_meaning_in_many_forms(tmp_path: Path, table: str | bytes) -> None:
    read = listing(tmp_path, table)
    assert {image_id: tuple(sorted(classes or ())) for image_id, classes in found(read).items()} == {
        image_id: tuple(sorted(classes)) for image_id, classes in EXPECTED.items()
    }
    assert not read.questions
    assert len(read.sources) == 3


def test_tables_of_other_kinds(tmp_path: Path) -> None:
    records = [{"image_id": name, "classes": list(classes)} for name, classes in EXPECTED.items()]
    assert found(listing(tmp_path, json.dumps(records), kind="json")) == EXPECTED
    assert found(listing(tmp_path, json.dumps(dict(EXPECTED.items())), kind="json")) == EXPECTED
    assert found(listing(tmp_path, "\n".join(map(json.dumps, records)), kind="jsonl")) == EXPECTED
    assert found(listing(tmp_path, gzip.compress(LONG.encode()), kind="csv.gz")) == EXPECTED
    assert found(listing(tmp_path, LONG.replace(",", "\t"), kind="TSV")) == EXPECTED


@pytest.mark.parametrize(
    "classes",
    [
        [["person"], ["person", "car"], ["horse"]],
        [["person", None], ["car", "person"], ["horse"]],
        [[1], [1, 3], [2]],
        [[1, 0, 0], [1, 0, 1], [0, 1, 0]],
        [dict(zip(CLASSES, hot, strict=True)) for hot in ((1.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0))],
        pa.array(
            [[("person", 1), ("car", 0)], [("person", 1), ("car", 2)], [("horse", 1)]], pa.map_(pa.string(), pa.int32())
        ),
        [{"label": own, "score": [1.0]} for own in (["person"], ["person", "car"], ["horse"])],
        pa.array(["person", "person;car", "horse"]).dictionary_encode(),
    ],
)  # fmt: skip
def test_parquet_of_every_type(tmp_path: Path, classes: Any) -> None:
    pq.write_table(pa.table({"image_id": ["a", "b", "c"], "classes": classes}), tmp_path / "labels.parquet")
    read = listing(tmp_path, b"", kind="parquet")
    assert {key: sorted(value or ()) for key, value in found(read).items()} == {
        key: sorted(value) for key, value in EXPECTED.items()
    }


def test_names_of_numbers_that_the_file_knows(tmp_path: Path) -> None:
    table = pa.table({"image_id": ["a", "b", "c"], "label": [0, 2, 1]})
    features = {"label": {"names": ["horse", "person", "car"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "labels.parquet")
    read = listing(tmp_path, b"", kind="parquet")
    assert found(read) == {"a": ("horse",), "b": ("car",), "c": ("person",)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image_id,classes,classes\na,person,car\n", "has the column 'classes' twice"),
        ("image_id,Label,label \na,person,car\n", "has the column 'label' twice"),
        ("image_id,classes\na,0\nb,1\n", "is 0 the background or the first class"),
        ("image_id,classes\na,1\nb,9\n", "numbers from 1 to 9, and there are 3 classes"),
        ("image_id,weather\na,rain\n", "has no column 'classes' nor one for any of the classes person"),
        ("", "is empty"),
        ("a;b;c", "has no column 'image_id'; it has a, b, c"),
        ("image_id,classes\na,null\nb,None\nc,NA\n", "none of the 3 images"),
    ],
)
def test_what_has_two_meanings_is_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DatasetError, match=message) as caught:
        listing(tmp_path, table)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,person,car", "more cells than the header"),
        ('a,"person\nb,car\nc,horse', "a quote is not closed"),
        ("ghost,car", "has labels but no image"),
    ],
)
def test_what_is_wrong_with_a_row_is_its_image_s_problem(tmp_path: Path, row: str, problem: str) -> None:
    read = listing(tmp_path, f"image_id,classes\nb,car\n{row}\n")
    assert [own.problem and problem in own.problem for own in read.sources if own.image_id != "b"] == [True]


def test_shares_are_no_labels(tmp_path: Path) -> None:
    read = listing(tmp_path, "image_id,person,car\na,0.7,0\nb,1,0\n")
    problems = {own.image_id: own.problem for own in read.sources}
    assert problems == {"a": "its row has 0.7 for a class, which is neither yes nor no: write 1 or 0", "b": None}


def test_numbers_from_zero_where_one_says_so(tmp_path: Path) -> None:
    read = listing(tmp_path, "image_id,classes\na,0\nb,2\n", first_index=0)
    assert found(read) == {"a": ("person",), "b": ("car",)}
    assert any("numbers from 0 to 2: they are taken as 0 for 'person'" in note for note in read.notes)


def test_a_split_takes_its_rows_or_is_asked_about(tmp_path: Path) -> None:
    table = "image_id,classes,split\na,person,train\nb,car,val\nc,horse,train\n"
    assert found(listing(tmp_path, table, split="train")) == {"a": ("person",), "c": ("horse",)}
    asked = listing(tmp_path, table, split="all")
    assert len(found(asked)) == 3
    told = "all rows are taken, whatever 'split' says (train, val): `dataset.split: train` takes only those"
    assert asked.questions == [told]


def test_what_is_forgiven_is_told_once(tmp_path: Path) -> None:
    table = "image_id,classes\n42,Person\n43.0,CAR;person_\n44,plane\n"
    read = listing(tmp_path, table, ("000042.jpg", "000043.jpg", "000044.jpg"))
    assert [own.classes for own in read.sources] == [("person",), ("car", "person"), ("plane",)]
    told = "'CAR' for 'car', 'Person' for 'person', 'person_' for 'person'"
    assert f"names of classes that differ in case or spaces are taken: {told}" in read.notes
    assert any(note.startswith("3 names (such as 42 for 000042.jpg") for note in read.notes)
    assert read.questions == ["the label 'plane' (1 images) is no class of this run: classes are person, horse, car"]


def test_two_classes_that_differ_in_case_are_two(tmp_path: Path) -> None:
    read = listing(tmp_path, "image_id,classes\na,Car\nb,car\nc,CAR\n", classes=("car", "Car"))
    assert [own.classes for own in read.sources] == [("Car",), ("car",), ("CAR",)]
    assert read.questions


def test_class_names_may_hold_what_separates(tmp_path: Path) -> None:
    classes = ("horse, wild", "car|van", "rock;roll", "car")
    table = 'image_id,classes\na,"horse, wild;car"\nb,car|van\nc,"rock;roll"\n'
    assert found(listing(tmp_path, table, classes=classes)) == {
        "a": ("horse, wild", "car"),
        "b": ("car|van",),
        "c": ("rock;roll",),
    }


def test_names_of_any_letters_become_ids_and_come_back(tmp_path: Path) -> None:
    names = ("IMG 1.jpg", "a+b.jpg", "x#1.jpg", "cafe\u0301.jpg", "dog/1.jpg", "cat/1.jpg", "ok~.jpg", "100%.jpg")
    table = (
        "image_id,classes\nIMG 1,car\na+b,car\nx#1,car\ncaf\u00e9,car\ndog/1,car\ncat/1.jpg,horse\nok~,car\n100%,car\n"
    )
    read = listing(tmp_path, table, names)
    assert not [own.problem for own in read.sources if own.problem]
    assert set(found(read)) == {
        "IMG%201", "a%2Bb", "x%231", "cafe%CC%81", "dog%2F1", "cat%2F1", "ok%7E", "100%25"
    }  # fmt: skip
    assert found(read)["cat%2F1"] == ("horse",)


def test_an_exact_name_wins_and_a_stem_of_two_is_refused(tmp_path: Path) -> None:
    read = listing(tmp_path, "image_id,classes\na.jpg,person\nb,car\n", ("a.jpg", "a.jpg.png", "b.jpg"))
    assert {own.image_id: own.image_url.rpartition("/")[2] for own in read.sources} == {"a": "a.jpg", "b": "b.jpg"}
    (tmp_path / "photos" / "b.png").touch()
    problems = {own.image_id: own.problem for own in listing(tmp_path, b"").sources}
    assert problems == {"a": None, "b": "the name b fits b.jpg, b.png: write the whole name"}


def test_what_is_an_image_is_found_by_its_bytes_where_the_name_does_not_say(tmp_path: Path) -> None:
    names = (
        "a.jfif",
        "b.MPO",
        "c.avif",
        "._a.jpg",
        ".DS_Store",
        "Thumbs.db",
        "notes.txt",
        "sub/d.heic",
        "__MACOSX/e.jpg",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "0f3a9c").write_bytes(b"\xff\xd8\xff\xe0 a key of a store")
    (tmp_path / "g.jpg_large").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "README").write_bytes(b"read me")
    files = find_images(str(tmp_path))
    assert files.names == ["0f3a9c", "a.jfif", "b.MPO", "c.avif", "g.jpg_large", "sub/d.heic"]
    assert files.notes == [
        "4 files (such as .DS_Store, ._a.jpg, Thumbs.db) of the operating system (hidden), left out",
        "2 files (such as notes.txt, README) that are no images, left out",
    ]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "https://example.org/x"])
def test_a_web_server_is_no_folder(url: str) -> None:
    with pytest.raises(DatasetError, match="can't list its files"):
        find_images(url)
