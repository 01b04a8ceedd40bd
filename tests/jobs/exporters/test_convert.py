"""Every export, read back by the program that it is for: the pixels are those of the run."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import VOCSegmentation

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.images import decode_label_png, encode_label_png
from fmwsss.core.labels import PALETTE
from fmwsss.core.schemas import IMAGES, SEEDS, SUPERPIXELS, superpixels_row
from fmwsss.core.seeds.instances import instances_of
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.vocabularies import custom_vocabulary
from fmwsss.jobs.commands.convert import FORMATS
from fmwsss.jobs.commands.convert import run as convert
from fmwsss.jobs.config.datasets import CocoData, FolderData, ParquetData
from fmwsss.jobs.exporters.label_studio import brush_rle
from fmwsss.jobs.images.image_rows import Reading, image_row
from fmwsss.jobs.images.readers.registry import read_dataset
from fmwsss.jobs.images.readers.voc import read_voc
from fmwsss.jobs.stages import begin_stage, finish_stage
from tests.support.image_files import encoded, png

CLASSES = ("cat", "big dog")
HEIGHT, WIDTH = 24, 36


def label_maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    maps = {}
    for index in range(5):
        coarse = rng.choice([0, 0, 1, 2, 255], (HEIGHT // 4, WIDTH // 4)).astype(np.uint8)
        maps[f"dog%2F{index}"] = coarse.repeat(4, 0).repeat(4, 1)
    maps["blank"] = np.zeros((HEIGHT, WIDTH), np.uint8)
    ring = np.zeros((HEIGHT, WIDTH), np.uint8)
    ring[4:20, 4:20], ring[8:12, 8:12] = 1, 0
    maps["ring"] = ring
    return maps


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    folder = Folder(str(tmp_path / "run"))
    if request.param == "s3":
        folder = Folder(request.getfixturevalue("s3_url")).child(f"convert/{tmp_path.name}")
    own = Run(folder)
    rng = np.random.default_rng(0)
    config = {"vocabulary": {"classes": list(CLASSES)}, "run": "x", "dataset": {"kind": "folder"}}
    own.write_manifest({"config": config, "stages": ["images", "superpixels", "seeds/fine"]})
    items = list(label_maps().items())
    two = np.zeros((2, HEIGHT, WIDTH), bool)
    two[0, 4:20, 4:12], two[1, 4:20, 12:20] = True, True
    numbers = {"level": np.array([2, 2], np.int8), "predicted_iou": np.ones(2, np.float32)}
    superpixels = Superpixels.from_masks(two, **numbers, stability=np.ones(2, np.float32))
    for number, part in enumerate((items[:3], items[3:])):
        images, seeds, proposals = [], [], []
        for image_id, labels in part:
            data = png(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            classes = [CLASSES[i - 1] for i in (1, 2) if (labels == i).any()]
            images.append({**dict.fromkeys(IMAGES.names), "image_id": image_id, "image": data, "classes": classes})
            seeds.append({**dict.fromkeys(SEEDS.names), "image_id": image_id, "seed": encode_label_png(labels),
                          "classes": classes, "mean_confidence": 0.5,
                          "superpixel_class": [1, 1] if image_id == "ring" else [0, 0]})  # fmt: skip
            proposals.append(superpixels_row(image_id, superpixels))
        for stage, rows, schema in (("images", images, IMAGES), ("superpixels", proposals, SUPERPIXELS),
                                    ("seeds/fine", seeds, SEEDS)):  # fmt: skip
            started = begin_stage(own, stage, {}, [])
            own.write_part(stage, part_name(number), rows, schema, [])
            if number:
                finish_stage(own, started, [part_name(0), part_name(1)], 7, 0)
    return Run(folder)


def fetched(run: Run, to: str, tmp_path: Path, **options: Any) -> Path:
    """A run converted where it is, and the files of that on this disk."""
    output = run.folder.child(f"out/{to}")
    assert output.url in convert(run, to, output.url, None, **options)
    for name in output.list():
        path = tmp_path / "fetched" / to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(output.read(name))
    return tmp_path / "fetched" / to


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_as_pycocotools_reads_it(run: Run, tmp_path: Path, polygons: bool) -> None:
    root = fetched(run, "coco", tmp_path, polygons=polygons)
    theirs: Any = COCO(root / "annotations.json")
    assert [own["name"] for own in theirs.loadCats(theirs.getCatIds())] == list(CLASSES)
    maps = label_maps()
    assert len(theirs.imgs) == len(maps)
    for about in theirs.imgs.values():
        painted = np.zeros((about["height"], about["width"]), np.uint8)
        for own in theirs.loadAnns(theirs.getAnnIds(about["id"])):
            mask = theirs.annToMask(own) > 0
            assert not painted[mask].any(), "things do not overlap"
            assert (own["area"], own["score"]) == (mask.sum(), 0.5)
            painted[mask] = own["category_id"]
        expected = maps[about["file_name"].removesuffix(".png")]
        np.testing.assert_array_equal(painted, np.where(expected == 255, 0, expected))
        assert Image.open(root / "images" / about["file_name"]).size == (WIDTH, HEIGHT)


def test_coco_comes_back_as_ground_truth(run: Run, tmp_path: Path) -> None:
    root = fetched(run, "coco", tmp_path)
    data = CocoData(kind="coco", images=f"{root}/images", annotations=f"{root}/annotations.json")
    reading = Reading(custom_vocabulary(CLASSES))
    maps, seen = label_maps(), 0
    for source in read_dataset(data, CLASSES).sources:
        # The files are called as the ids are; as files their `%` is escaped once more.
        expected = maps[source.image_id.replace("%25", "%")]
        truth = decode_label_png(image_row(vars(source), reading)["truth"])
        np.testing.assert_array_equal(truth, np.where(expected == 255, 0, expected))
        seen += 1
    assert seen == sum((labels % 255 > 0).any() for labels in maps.values())


def test_panoptic_segments_as_coco_reads_them(run: Run, tmp_path: Path) -> None:
    root = fetched(run, "panoptic", tmp_path)
    told = json.loads((root / "panoptic.json").read_text())
    names = {own["id"]: own["file_name"].removesuffix(".png") for own in told["images"]}
    for own in told["annotations"]:
        rgb = np.asarray(Image.open(root / "panoptic" / own["file_name"])).astype(np.uint32)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        painted = np.zeros(ids.shape, np.uint8)
        for segment in own["segments_info"]:
            painted[ids == segment["id"]] = segment["category_id"]
            x, y, width, height = segment["bbox"]
            rows, columns = np.nonzero(ids == segment["id"])
            assert (rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1) == (y, x, height, width)
        expected = label_maps()[names[own["image_id"]]]
        np.testing.assert_array_equal(painted, np.where(expected == 255, 0, expected))


def test_voc_as_torchvision_and_we_read_it(run: Run, tmp_path: Path) -> None:
    root = fetched(run, "voc", tmp_path)
    sources = read_voc(str(root / "VOCdevkit/VOC2012"), "train").sources
    maps = label_maps()
    assert len(sources) == len(maps)
    for source in sources:
        mask = np.asarray(Image.open(source.truth_url or ""))
        np.testing.assert_array_equal(mask, maps[source.image_id.replace("%25", "%")])
    # torchvision knows one extension.
    for path in (root / "VOCdevkit/VOC2012/JPEGImages").iterdir():
        path.rename(path.with_suffix(".jpg"))
    theirs = VOCSegmentation(str(root), image_set="train")
    assert len(theirs) == len(maps)
    for index, expected in enumerate(maps.values()):
        np.testing.assert_array_equal(np.asarray(theirs[index][1]), expected)


def test_masks_of_the_other_layouts(run: Run, tmp_path: Path) -> None:
    maps = label_maps()
    mmseg = fetched(run, "mmseg", tmp_path)
    fiftyone = fetched(run, "fiftyone", tmp_path)
    cityscapes = fetched(run, "cityscapes", tmp_path)
    cvat = fetched(run, "cvat", tmp_path)
    colours = dict(line.split(":")[:2] for line in (cvat / "labelmap.txt").read_text().splitlines()[1:])
    assert colours == {"background": "0,0,0", "cat": "128,0,0", "big dog": "0,128,0"}
    for image_id, expected in maps.items():
        for path in (
            mmseg / "ann_dir/train" / f"{image_id}.png",
            fiftyone / "labels" / f"{image_id}.png",
            cityscapes / "gtFine/train/fmwsss" / f"{image_id}_gtFine_labelIds.png",
        ):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
        colour = np.asarray(Image.open(cvat / "SegmentationClass" / f"{image_id}.png"))
        np.testing.assert_array_equal(colour, PALETTE[np.where(expected == 255, 0, expected)])
    settings: dict[str, Any] = {}
    exec((mmseg / "fmwsss_dataset.py").read_text(), settings)
    dataset = settings["train_dataloader"]["dataset"]
    assert dataset["metainfo"]["classes"] == ("background", *CLASSES)
    assert (mmseg / dataset["data_prefix"]["img_path"] / f"ring{dataset['img_suffix']}").exists()


def test_yolo_as_opencv_fills_it(run: Run, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    root = fetched(run, "yolo", tmp_path)
    for image_id, expected in label_maps().items():
        painted = np.zeros((HEIGHT, WIDTH), np.uint8)
        for line in (root / "labels/train" / f"{image_id}.txt").read_text().splitlines():
            index, *numbers = line.split()
            points = (np.array(numbers, float).reshape(-1, 2) * (WIDTH, HEIGHT)).astype(np.int32)
            cv2.fillPoly(painted, [points], int(index) + 1)
        np.testing.assert_array_equal(painted, np.where(expected == 255, 0, expected))


def test_yolo_as_supervision_reads_it(run: Run, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    root = fetched(run, "yolo", tmp_path)
    theirs = supervision.DetectionDataset.from_yolo(
        str(root / "images/train"), str(root / "labels/train"), str(root / "data.yaml"), force_masks=True
    )
    assert theirs.classes == list(CLASSES)
    for path, _, detections in theirs:
        expected = label_maps()[Path(path).stem]
        painted = np.zeros((HEIGHT, WIDTH), np.uint8)
        for mask, index in zip(detections.mask if len(detections) else [], detections.class_id, strict=True):
            painted[mask] = index + 1
        np.testing.assert_array_equal(painted, np.where(expected == 255, 0, expected))


def test_hugging_face_as_our_reader_and_datasets_read_it(run: Run, tmp_path: Path) -> None:
    root = fetched(run, "hf", tmp_path)
    data = ParquetData(kind="parquet", files=str(root / "data"), truth="label", image="image")
    reading = Reading(custom_vocabulary(CLASSES))
    rows = {own.image_id: image_row(vars(own), reading) for own in read_dataset(data, CLASSES).sources}
    for image_id, expected in label_maps().items():
        if image_id == "blank":
            continue  # it has no label
        row = rows[image_id.replace("%", "%25")]
        np.testing.assert_array_equal(decode_label_png(row["truth"]), expected)
        assert row["classes"] == [CLASSES[i - 1] for i in (1, 2) if (expected == i).any()]
    card = (root / "README.md").read_text()
    assert card.startswith("---\n")
    assert "its licence holds" in card.replace("\n", " ")
    datasets = pytest.importorskip("datasets")
    theirs = datasets.Dataset.from_parquet(str(root / "data/train-00000.parquet"), cache_dir=str(tmp_path / "cache"))
    for own in theirs:
        np.testing.assert_array_equal(np.asarray(own["label"]), label_maps()[own["image_id"]])
    assert theirs.features["classes"].feature.names == list(CLASSES)


def decoded_brush(rle: list[int]) -> np.ndarray:
    """Label Studio's own way to read its run lengths, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    size, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < size:
        repeats = take(1)
        length = take(widths[take(2)]) + 1
        values += [take(word)] * length if repeats else [take(word) for _ in range(length)]
    return np.array(values)


def test_label_studio_reads_the_brush(run: Run, tmp_path: Path) -> None:
    root = fetched(run, "labelstudio", tmp_path)
    tasks = json.loads((root / "tasks.json").read_text())
    assert len(tasks) == len(label_maps())
    for task in tasks:
        expected = label_maps()[task["data"]["image_id"]]
        painted = np.zeros(expected.shape, np.uint8)
        (prediction,) = task["predictions"]
        assert prediction["score"] == 0.5
        for result in prediction["result"]:
            mask = decoded_brush(result["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
            painted[mask] = 1 + CLASSES.index(result["value"]["brushlabels"][0])
        np.testing.assert_array_equal(painted, np.where(expected == 255, 0, expected))
    assert '<Label value="big dog"/>' in (root / "label_config.xml").read_text()


def test_the_brush_of_a_large_mask_as_label_studio_decodes_it() -> None:
    mask = np.zeros((300, 400), bool)
    mask[50:290, 3:370] = True
    np.testing.assert_array_equal(decoded_brush(brush_rle(mask)).reshape(300, 400, 4)[..., 0] > 0, mask)
    brush = pytest.importorskip("label_studio_converter.brush")
    np.testing.assert_array_equal(brush.decode_rle(brush_rle(mask)).reshape(300, 400, 4)[..., 3] > 0, mask)


def test_things_that_touch_are_told_apart_by_superpixels() -> None:
    labels = label_maps()["ring"]
    assert len(list(instances_of(labels))) == 1
    two = np.zeros((2, HEIGHT, WIDTH), bool)
    two[0, 4:20, 4:12], two[1, 4:20, 13:20] = True, True
    ones = np.ones(2, np.float32)
    superpixels = Superpixels.from_masks(two, np.array([2, 2], np.int8), ones, ones)
    (first, left), (second, right) = instances_of(labels, superpixels, [1, 1])
    assert first == second == 1
    np.testing.assert_array_equal(left | right, labels == 1)
    assert not (left & right).any()
    assert (left[:, :12] == (labels == 1)[:, :12]).all()
    assert len(list(instances_of(labels, superpixels, [1, 2]))) == 1


def test_what_cannot_be_converted_is_one_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no format 'cocoo': use coco, panoptic"):
        convert(run, "cocoo", None, None)
    with pytest.raises(ValueError, match=r"predictions/new of .* is not complete"):
        convert(run, "coco", None, "predictions/new")
    with pytest.raises(ValueError, match="there is no run at"):
        convert(Run(Folder(str(tmp_path / "nowhere"))), "coco", None, None)
    convert(run, "fiftyone", None, None)
    with pytest.raises(ValueError, match=r"exports/fiftyone is not empty"):
        convert(run, "fiftyone", None, None)
    assert set(FORMATS) >= {"coco", "panoptic", "yolo", "mmseg", "voc", "labelstudio", "cvat", "hf"}


def test_a_turned_photograph_is_upright_in_an_export(tmp_path: Path) -> None:
    from fmwsss.jobs.exporters.labelled_images import LabelledImage

    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(Image.fromarray(np.zeros((20, 30, 3), np.uint8)), "JPEG", exif=turned)
    image = LabelledImage("a", data, b"", (), None)
    assert image.file_name() == "a.jpg"
    upright = Image.open(BytesIO(image.upright()))
    assert (upright.size, upright.getexif().get(0x0112, 1)) == ((20, 30), 1)


def test_a_folder_export_is_read_as_a_folder_with_truth(run: Run, tmp_path: Path) -> None:
    root = fetched(run, "mmseg", tmp_path)
    labels = "image_id,classes\n" + "".join(f"{name},cat\n" for name in label_maps())
    (root / "labels.csv").write_text(labels)
    data = FolderData(
        kind="folder", images=f"{root}/img_dir/train", labels=f"{root}/labels.csv", truth=f"{root}/ann_dir/train"
    )
    sources = read_dataset(data, CLASSES).sources
    assert len([own for own in sources if own.truth_url and not own.problem]) == len(label_maps())
