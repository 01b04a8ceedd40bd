"""Datasets as lists of sources: what is found, and what is wrong with which image."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.config.datasets import FolderData, ToyData, UnlabelledData, VocData
from fmwsss.jobs.images.readers.base import DatasetError, Listing, Source, without_labels
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.folder import read_folder
from fmwsss.jobs.images.readers.registry import read_dataset
from fmwsss.jobs.images.readers.toy import draw_toy
from fmwsss.jobs.images.readers.voc import read_voc


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path))
    return Folder(request.getfixturevalue("s3_url")).child(f"datasets/{tmp_path.name}")


def listed(images: str, labels: str, truth: str | None = None, classes: tuple[str, ...] = ()) -> Listing:
    return read_folder(images, labels, truth, ClassNames(classes))


def problems(sources: list[Source]) -> dict[str, str | None]:
    return {source.image_id: source.problem for source in sources}


def fill_voc(root: Folder, **files: str) -> None:
    root.write("ImageSets/Segmentation/train.txt", b"2007_1\n2007_2\n\n2007_3 \n")
    root.write("ImageSets/Segmentation/val.txt", b"2007_4\n")
    root.write_many({f"JPEGImages/2007_{index}.jpg": b"" for index in range(1, 5)})
    root.write_many({f"SegmentationClass/2007_{index}.png": b"" for index in (1, 2)})
    root.write_many({name.replace("__", "/"): text.encode() for name, text in files.items()})


def test_voc_without_annotations_takes_the_labels_of_the_masks(root: Folder) -> None:
    fill_voc(root)
    first, second, third = read_voc(root.url, "train").sources
    assert first == Source(
        "2007_1", f"{root.url}/JPEGImages/2007_1.jpg", None, f"{root.url}/SegmentationClass/2007_1.png"
    )
    assert second.problem is None
    assert third.image_id == "2007_3"
    assert third.problem == "has no labels: there is neither an annotation nor a mask"


def test_voc_annotations_are_where_the_labels_are(root: Folder) -> None:
    fill_voc(root, **{"Annotations__2007_3.xml": "<annotation/>"})
    third = read_voc(root.url, "train").sources[2]
    assert (third.problem, third.truth_url) == (None, None)
    assert third.annotation_url == f"{root.url}/Annotations/2007_3.xml"


def test_voc_falls_back_to_the_main_image_sets(root: Folder) -> None:
    root.write("ImageSets/Main/trainval.txt", b"a  1\nb -1\n")
    root.write_many({"SegmentationClass/a.png": b"", "SegmentationClass/b.png": b""})
    assert [source.image_id for source in read_voc(root.url, "trainval").sources] == ["a", "b"]


def test_what_is_wrong_with_a_whole_voc_folder_is_one_line(root: Folder) -> None:
    with pytest.raises(DatasetError, match=r"is no VOC folder: it has no ImageSets/Segmentation/train\.txt$"):
        read_voc(root.url, "train")
    fill_voc(root, **{"ImageSets__Segmentation__empty.txt": "\n"})
    with pytest.raises(DatasetError, match=r"there is no split 'trian' in .*; there are empty, train, val$"):
        read_voc(root.url, "trian")
    with pytest.raises(DatasetError, match="there are no images in split empty of"):
        read_voc(root.url, "empty")


def test_the_real_voc_folder(real: Path) -> None:
    sources = read_voc(str(real / "voc"), "train").sources
    assert len(sources) == 311
    assert not [source for source in sources if source.problem]
    assert all(Path(source.image_url).exists() and Path(source.truth_url or "").exists() for source in sources)


CSV = 'image_id,classes\na,cat;dog\nb.jpg,"cat, big dog"\nc,cat|dog\nd,\n'


def fill_folder(root: Folder, table: str = CSV) -> tuple[str, str]:
    root.write_many({f"images/{name}": b"" for name in ("a.jpg", "b.jpg", "c.PNG", "d.jpeg", "notes.txt", "sub/x.jpg")})
    root.write("labels.csv", table.encode())
    return f"{root.url}/images", f"{root.url}/labels.csv"


def test_a_folder_and_a_csv_table(root: Folder) -> None:
    images, labels = fill_folder(root)
    root.write_many({"truth/b.png": b"", "truth/b.txt": b""})
    listing = listed(images, labels, f"{root.url}/truth")
    sources = listing.sources
    assert [source.image_id for source in sources] == ["a", "b", "c"]
    assert [source.classes for source in sources] == [("cat", "dog"), ("cat", "big dog"), ("cat", "dog")]
    assert [source.image_url.rpartition("/")[2] for source in sources] == ["a.jpg", "b.jpg", "c.PNG"]
    assert [source.truth_url for source in sources] == [None, f"{root.url}/truth/b.png", None]
    assert not any(problems(sources).values())
    assert listing.num_unlabelled == 2
    assert "2 images (such as d, sub%2Fx) without labels, left out" in without_labels(listing, kept=False).notes
    taken = without_labels(listing, kept=True)
    assert [(source.image_id, source.classes) for source in taken.sources[3:]] == [("d", ()), ("sub%2Fx", ())]
    assert "2 images (such as d, sub%2Fx) without labels" in taken.notes
    assert "1 file (such as notes.txt) that are no images, left out" in listing.notes


def test_a_parquet_table_may_have_lists_and_numbers(tmp_path: Path) -> None:
    images, _ = fill_folder(Folder(str(tmp_path)))
    (tmp_path / "images" / "17.jpg").touch()
    table = pa.table({"image_id": [17], "classes": [["dog", "cat"]], "other": [1.0]})
    pq.write_table(table, tmp_path / "labels.parquet")
    first = listed(images, str(tmp_path / "labels.parquet")).sources[0]
    assert (first.image_id, first.classes, first.problem) == ("17", ("dog", "cat"), None)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    images, labels = fill_folder(Folder(str(tmp_path)), "\ufeff" + CSV.replace("\n", "\r\n"))
    assert listed(images, labels).sources[0].classes == ("cat", "dog")


def test_everything_that_is_wrong_with_one_image_is_its_own_problem(tmp_path: Path) -> None:
    table = "image_id,classes\na,cat\na.jpg,dog\nghost,cat\n../../etc/passwd,cat\n,cat\nb,cat,dog\nc,cat\nd,cat\n"
    images, labels = fill_folder(Folder(str(tmp_path)), table)
    (tmp_path / "images" / "c.bmp").touch()
    sources = listed(images, labels).sources
    assert {source.image_id: source.classes for source in sources if not source.problem} == {
        "a": ("cat", "dog"),
        "d": ("cat",),
    }
    found = {source.image_id: source.problem for source in sources if source.problem}
    expected = {
        "b": "more cells than the header",
        "ghost": "has labels but no image in",
        "%2E.%2F..%2Fetc%2Fpasswd": "has labels but no image in",
        "c": "the name c fits c.PNG, c.bmp: write the whole name",
        "no-name": "its row of labels names no image",
    }
    assert found.keys() == expected.keys()
    for image_id, problem in found.items():
        assert expected[image_id] in problem
        assert len(problem.splitlines()) == 1


def test_what_is_wrong_with_a_whole_folder_is_one_line(tmp_path: Path) -> None:
    root = Folder(str(tmp_path))
    with pytest.raises(DatasetError, match="is not there; check the path"):
        listed(f"{root.url}/images", f"{root.url}/labels.csv")
    images, labels = fill_folder(root, "who,classes\na,cat\n")
    with pytest.raises(DatasetError, match="has no column 'image_id'; it has who, classes"):
        listed(images, labels)
    with pytest.raises(DatasetError, match=r"is neither \.csv, .* nor \.parquet; save it as CSV"):
        listed(images, f"{root.url}/labels.xlsx")
    root.write("labels.parquet", b"image_id,classes\n")
    with pytest.raises(DatasetError, match="can't be read as parquet"):
        listed(images, f"{root.url}/labels.parquet")
    with pytest.raises(ValueError, match=r"can't read .*absent\.csv: it does not exist"):
        listed(images, f"{root.url}/absent.csv")


def test_toy_scenes_are_named_by_their_seeds() -> None:
    assert [source.image_id for source in draw_toy(3, 7).sources] == ["toy-000007", "toy-000008", "toy-000009"]
    assert draw_toy(1, 7).sources[0].image_url == "toy:7"


def test_the_run_file_chooses_and_limits(tmp_path: Path) -> None:
    root = Folder(str(tmp_path))
    fill_voc(root)
    images, labels = fill_folder(root)
    assert len(read_dataset(ToyData(kind="toy", num_images=4)).sources) == 4
    assert len(read_dataset(VocData(kind="voc", root=root.url, split="train", max_images=2)).sources) == 2
    assert len(read_dataset(FolderData(kind="folder", images=images, labels=labels)).sources) == 3


def test_a_folder_without_labels_is_every_image_in_it_with_its_truth(tmp_path: Path) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    (tmp_path / "truth").mkdir()
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    (tmp_path / "truth" / "a.png").write_bytes(b"x")
    data = UnlabelledData(kind="unlabelled", images=str(tmp_path / "photos"), truth=str(tmp_path / "truth"))
    found = read_dataset(data).sources
    assert [(own.image_id, own.classes, own.problem) for own in found] == [
        (image_id, (), None) for image_id in ("a", "b", "sub%2Fc")
    ]
    assert [source.truth_url for source in found] == [f"{tmp_path}/truth/a.png", None, None]
    with pytest.raises(DatasetError, match="is not there; check the path"):
        read_dataset(UnlabelledData(kind="unlabelled", images=str(tmp_path / "truth" / "none")))
