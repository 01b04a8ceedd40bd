"""Images into a run: what is stored, what fails, and that a second start does only what is left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.cluster.storage.ledger import ChangedInputs, Run, part_name
from fmwsss.cluster.storage.retry import forget
from fmwsss.core.images import decode_label_png, decode_rgb, encode_label_png
from fmwsss.core.schemas import IMAGES
from fmwsss.core.toy.world import draw_scene
from fmwsss.core.vocabularies import VOC12, custom_vocabulary
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images import ingest
from fmwsss.jobs.images.image_rows import Reading, image_row
from fmwsss.jobs.images.readers.base import DatasetError
from fmwsss.jobs.stages import StageError
from tests.fmwsss_core.test_images import png_header
from tests.support.image_files import encoded, png

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"

pytestmark = pytest.mark.usefixtures("cluster")


def config_of(run: Run, *overrides: str) -> RunConfig:
    return load_config(str(DEMO), [f"run={run.folder.url}", *overrides])


def folder_config(run: Run, root: Path, *overrides: str) -> RunConfig:
    truth = f", truth: {root}/truth" if list(root.glob("truth/*.png")) else ""
    dataset = f"dataset={{kind: folder, images: {root}/images, labels: {root}/labels.csv{truth}}}"
    return config_of(run, dataset, "vocabulary={classes: [cat, dog, cow]}", "shard_rows=4", *overrides)


def rows_of(run: Run, parts: list[str]) -> list[dict]:
    return [row for part in parts for row in run.read_part("images", part).to_pylist()]


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, s3_url: str) -> Run:
    return Run(Folder(str(tmp_path / "run")) if request.param == "local" else Folder(s3_url).child(tmp_path.name))


def test_toy_scenes_come_in_with_labels_and_truth(run: Run) -> None:
    receipt = ingest.run(config_of(run, "dataset.num_images=11", "shard_rows=4"), run)
    assert receipt.parts == [part_name(index) for index in range(3)]
    assert (receipt.num_rows, receipt.num_failures) == (11, 0)
    rows = rows_of(run, receipt.parts)
    assert [row["image_id"] for row in rows] == [f"toy-{seed:06d}" for seed in range(11)]
    for seed, row in enumerate(rows):
        scene = draw_scene(seed)
        np.testing.assert_array_equal(decode_rgb(row["image"], 10**6), scene.image)
        np.testing.assert_array_equal(decode_label_png(row["truth"]), scene.truth)
        assert (row["height_px"], row["width_px"]) == scene.truth.shape
        assert row["classes"] == list(scene.classes)
        assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()


def test_a_second_start_does_only_what_is_left_and_changes_no_byte(run: Run) -> None:
    config = config_of(run, "dataset.num_images=11", "shard_rows=4")
    ingest.run(config, run)
    images = run.folder.child("images")
    parts = [run.file_of("images", part_name(index)) for index in range(3)]
    first = {part: images.read(part) for part in parts}
    images.delete(["_receipt.json", parts[1]])
    # Would be written again with other bytes if it were done again.
    images.write_table(parts[2], images.read_table(parts[2]).slice(0, 1), IMAGES)
    receipt = ingest.run(config, run)
    assert receipt.num_rows == 4 + 4 + 1
    assert images.read(parts[0]) == first[parts[0]]
    assert images.read(parts[1]) == first[parts[1]]
    assert images.read_table(parts[2]).num_rows == 1
    assert ingest.run(config, run) == receipt
    with pytest.raises(ChangedInputs, match=r"shard_rows: 4 -> 5"):
        ingest.run(config_of(run, "dataset.num_images=11", "shard_rows=5"), run)


def write_dataset(root: Path, rows: dict[str, str], **images: bytes) -> None:
    (root / "truth").mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        path = root / "images" / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    lines = ["image_id,classes", *(f"{name},{classes}" for name, classes in rows.items())]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_bad_images_are_rows_and_the_others_come_through(tmp_path: Path) -> None:
    photograph = Image.fromarray(noise())
    jpeg = encoded(photograph, "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "grey__jpg": encoded(photograph.convert("L"), "JPEG"),
        "cmyk__jpg": encoded(photograph.convert("CMYK"), "JPEG"),
        "wide__png": encoded(Image.fromarray(noise()[..., 0].astype(np.uint16) * 257), "PNG"),
        "turned__jpg": encoded(photograph, "JPEG", exif=turned),
        "masked__jpg": jpeg,
    }
    bad = {
        "truncated__jpg": (jpeg[: len(jpeg) // 2], "cut off"),
        "text__jpg": (b"Dear Sir or Madam", "no image"),
        "point__png": (png(noise(1, 1)), "both sides need at least 8"),
        "huge__png": (png_header(20_000, 20_000), "more than"),
        "heavy__jpg": (jpeg + b"\0" * 100_000, "more than the 100000 that are allowed"),
        "mislabelled__jpg": (jpeg, "cow"),
        "othersize__jpg": (jpeg, "its truth has 30 x 21 pixels, and the image, upright, 30 x 20"),
        "otherclass__jpg": (jpeg, "its truth has the class 7; the vocabulary has 3 classes"),
    }
    labels = {name.partition("__")[0]: "dog;cat;dog" for name in (*good, *bad)}
    labels |= {"unlabelled": "", "mislabelled": "cat;cowx", "../outside": "cat", "ghost": "cat", "grey.jpg": "cat"}
    good_and_bare = {**good, "unlabelled__jpg": jpeg, "norow__jpg": jpeg}
    write_dataset(tmp_path, labels, **good_and_bare, **{name: data for name, (data, _) in bad.items()})
    truth = np.where(np.arange(30) < 9, 255, 2).astype(np.uint8) * np.ones((20, 1), np.uint8)
    (tmp_path / "truth" / "masked.png").write_bytes(encode_label_png(truth))
    (tmp_path / "truth" / "othersize.png").write_bytes(encode_label_png(np.zeros((21, 30), np.uint8)))
    (tmp_path / "truth" / "otherclass.png").write_bytes(encode_label_png(np.full((20, 30), 7, np.uint8)))

    run = Run(Folder(str(tmp_path / "run")))
    receipt = ingest.run(folder_config(run, tmp_path, "limits.max_bytes=100000"), run)

    rows = {row["image_id"]: row for row in rows_of(run, receipt.parts)}
    assert set(rows) == {name.partition("__")[0] for name in good}
    assert receipt.num_rows == len(good)
    assert (rows["turned"]["height_px"], rows["turned"]["width_px"]) == (30, 20)
    assert all(row["classes"] == ["cat", "dog"] for row in rows.values())
    assert rows["turned"]["image"] == good["turned__jpg"]
    np.testing.assert_array_equal(decode_label_png(rows["masked"]["truth"]), truth)
    assert rows["grey"]["truth"] is None

    failures = {row["image_id"]: row for row in run.failures("images").to_pylist()}
    expected = {name.partition("__")[0]: text for name, (_, text) in bad.items()}
    expected |= {"%2E.%2Foutside": "no image in", "ghost": "no image in"}
    assert set(failures) == set(expected)
    assert receipt.num_failures == len(expected)
    for image_id, text in expected.items():
        assert text in failures[image_id]["message"]
        assert len(failures[image_id]["message"].splitlines()) == 1
        assert failures[image_id]["stage"] == "images"
    assert not (tmp_path.parent / "outside").exists()


def test_voc_labels_come_from_annotations_or_else_from_masks(tmp_path: Path) -> None:
    root = Folder(str(tmp_path / "voc"))
    mask = np.zeros((20, 30), np.uint8)
    mask[:5], mask[5:8] = 15, 255
    annotation = b"<annotation><object><name>dog</name><part><name>head</name></part></object></annotation>"
    root.write_many({f"JPEGImages/{name}.jpg": encoded(Image.fromarray(noise()), "JPEG") for name in "abcde"})
    root.write_many({f"SegmentationClass/{name}.png": encode_label_png(mask) for name in "ab"})
    root.write("SegmentationClass/c.png", encode_label_png(np.zeros_like(mask)))
    root.write_many({"Annotations/b.xml": annotation, "Annotations/d.xml": b"<annotation>"})
    root.write("ImageSets/Segmentation/train.txt", b"a\nb\nc\nd\ngone\n")
    run = Run(Folder(str(tmp_path / "run")))
    config = config_of(run, f"dataset={{kind: voc, root: {root.url}, split: train}}", "vocabulary=voc12")
    root.write("SegmentationClass/gone.png", encode_label_png(mask))
    receipt = ingest.run(config, run)
    assert {row["image_id"]: row["classes"] for row in rows_of(run, receipt.parts)} == {"a": ["person"], "b": ["dog"]}
    failures = {row["image_id"]: row["message"] for row in run.failures("images").to_pylist()}
    assert failures.keys() == {"c", "d", "gone"}
    assert failures["c"] == "has no labels"
    assert failures["d"] == "its annotation is no XML"
    assert "does not exist" in failures["gone"]


def test_real_photographs_have_the_labels_of_their_masks(real: Path, tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path / "run")))
    dataset = f"dataset={{kind: voc, root: {real / 'voc'}, split: val, max_images: 20}}"
    receipt = ingest.run(config_of(run, dataset, "vocabulary=voc12"), run)
    assert (receipt.num_rows, receipt.num_failures) == (20, 0)
    for row in rows_of(run, receipt.parts):
        mask = np.asarray(Image.open(real / "voc" / "SegmentationClass" / f"{row['image_id']}.png"))
        np.testing.assert_array_equal(decode_label_png(row["truth"]), mask)
        assert VOC12.indices(row["classes"]) == tuple(sorted(set(mask.ravel().tolist()) - {0, 255}))


def test_a_dataset_without_any_good_image_is_an_error(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"a": "cat"}, a__jpg=b"text")
    run = Run(Folder(str(tmp_path / "run")))
    with pytest.raises(StageError, match="all 1 images failed: 1 ImageError"):
        ingest.run(folder_config(run, tmp_path), run)
    write_dataset(tmp_path / "empty", {})
    second = Run(Folder(str(tmp_path / "run2")))
    with pytest.raises(DatasetError, match="is not there"):
        ingest.run(folder_config(second, tmp_path / "empty"), second)


def test_a_store_that_refuses_is_no_fault_of_the_images(tmp_path: Path) -> None:
    locked = "s3://no-such-bucket/images/a.jpg"
    source = {"image_id": "a", "image_url": locked, "classes": ["cat"], "truth_url": None}
    source |= {"annotation_url": None, "problem": None}
    vocabulary = custom_vocabulary(["cat"])
    with pytest.raises(StorageError, match="the bucket does not exist"):
        image_row(source, Reading(vocabulary))


def test_too_many_failures_end_the_stage_early_and_can_be_tried_again(tmp_path: Path) -> None:
    jpeg = encoded(Image.fromarray(noise()), "JPEG")
    images = {f"image{index}__jpg": jpeg if index % 2 else jpeg[:200] for index in range(40)}
    labels = {f"image{index}": "cat" for index in range(40)}
    write_dataset(tmp_path, {**labels, "ghost": "cat"}, **images)
    run = Run(Folder(str(tmp_path / "run")))
    config = folder_config(run, tmp_path, "max_failures=10 %", "shard_rows=2")
    run.write_manifest({"stages": ["images"]})
    with pytest.raises(StageError, match=r"^stage images: \d+ of 41 images failed, max_failures allows 4: ") as caught:
        ingest.run(config, run)
    assert "ImageError (such as image" in str(caught.value)
    assert "the image is cut off" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert run.receipt("images") is None
    written = run.folder.child("images").list("part-")
    assert len(written) < 21, "the stage went on to its end"
    # Where it stands it stays, until the cause is put right.
    with pytest.raises(StageError, match="max_failures allows 4"):
        ingest.run(config, run)
    for name in images:
        (tmp_path / "images" / name.replace("__", ".")).write_bytes(jpeg)
    forget(run)
    receipt = ingest.run(config, run)
    assert (receipt.num_rows, receipt.num_failures) == (40, 1)
    assert run.failures()["image_id"].to_pylist() == ["ghost"]
