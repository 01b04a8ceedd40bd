"""What the server says of a run, against what was written into it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.labels import PALETTE
from fmwsss.jobs.view.run_index import RunIndex
from tests.jobs.view.conftest import NUM_IMAGES
from tests.support.seeded_run import HEIGHT, WIDTH, classes_of, confidence_of, label_map, make_run, superpixels_of
from tests.support.viewer import Viewer, viewing

FAILING = 2


def facts(number: int) -> dict[str, Any]:
    """What `make_run` wrote of an image."""
    has_seed = number >= FAILING
    return {
        "number": number,
        "id": f"img-{number:05d}",
        "classes": classes_of(number) if has_seed else [],
        "missing": ["cow"] if number % 5 == 0 and has_seed else [],
        "confidence": confidence_of(number) if has_seed else np.nan,
        "iou": 1 - (number % 7) / 10 if has_seed else np.nan,
        "area": (number % 10) / 10 if has_seed else np.nan,
    }


IMAGES = [facts(number) for number in range(NUM_IMAGES)]


def last(value: float) -> tuple[bool, float]:
    return bool(np.isnan(value)), value


QUERIES: list[tuple[dict[str, Any], Any, Any]] = [
    ({}, lambda own: True, lambda own: last(own["confidence"])),
    ({"sort": "confidence"}, lambda own: True, lambda own: last(-own["confidence"])),
    ({"sort": "iou"}, lambda own: True, lambda own: last(float(np.float32(own["iou"])))),
    (
        {"sort": "area", "class": "dog"},
        lambda own: "dog" in own["classes"],
        lambda own: last(-float(np.float32(own["area"]))),
    ),
    ({"sort": "run", "class": "cow"}, lambda own: "cow" in own["classes"], lambda own: own["number"]),
    ({"sort": "id", "missing": "any"}, lambda own: own["missing"], lambda own: own["id"]),
    ({"missing": "cat"}, lambda own: "cat" in own["missing"], lambda own: own["confidence"]),
    ({"text": "G-0001"}, lambda own: "g-0001" in own["id"], lambda own: own["confidence"]),
    (
        {"confidence_min": 0.2, "confidence_max": 0.6},
        lambda own: 0.2 <= own["confidence"] <= 0.6,
        lambda own: own["confidence"],
    ),
    ({"iou_max": 0.75, "sort": "run"}, lambda own: own["iou"] <= 0.75, lambda own: own["number"]),
    ({"failed": 1}, lambda own: own["number"] < FAILING, lambda own: own["number"]),
    ({"verdict": "untouched", "sort": "run"}, lambda own: True, lambda own: own["number"]),
    ({"verdict": "accepted"}, lambda own: False, lambda own: 0),
]  # fmt: skip


@pytest.mark.parametrize(("query", "keeps", "key"), QUERIES)
def test_a_selection_is_what_a_loop_over_all_images_finds(viewer: Viewer, query: dict, keeps: Any, key: Any) -> None:
    # Failed images come last in the index.
    ordered = [*IMAGES[FAILING:], *IMAGES[:FAILING]]
    if query.get("sort") == "run":
        ordered = [{**own, "number": own["number"] + 1000 * (own["number"] < FAILING)} for own in ordered]
    expected = [own["id"] for own in sorted((own for own in ordered if keeps(own)), key=key)]
    listed = viewer.get("/api/list", **query)
    assert listed.body.decode().split() == expected
    assert "attachment" in listed.headers["content-disposition"]
    paged: list[str] = []
    for page in range(1, 1 + max(1, -(-len(expected) // 7))):
        told = viewer.get("/api/images", **query, size=7, page=page).json
        assert (told["total"], told["page"]) == (len(expected), page)
        paged += [image["id"] for image in told["images"]]
    assert paged == expected


@pytest.mark.parametrize("query", [{"class": "<b>"}, {"sort": "luck"}, {"confidence_min": "much"}, {"page": "x"}])
def test_what_an_address_may_not_say_is_one_line(viewer: Viewer, query: dict[str, str]) -> None:
    answer = viewer.get("/api/images", **query)
    assert answer.status == 400
    assert len(answer.json["error"].splitlines()) == 1


def test_a_page_beyond_the_last_is_the_last(viewer: Viewer) -> None:
    assert viewer.get("/api/images", page=999, size=7).json["page"] == -(-NUM_IMAGES // 7)
    assert len(viewer.get("/api/images", size=10**9).json["images"]) == NUM_IMAGES


def test_the_run_as_a_whole(viewer: Viewer) -> None:
    told = viewer.get("/api/run").json
    assert (told["images"], told["failed"], told["base"]) == (NUM_IMAGES, FAILING, "seeds/fine")
    for own in told["classes"]:
        having = [image for image in IMAGES if own["name"] in image["classes"]]
        assert own["images"] == len(having)
        assert own["missing"] == sum(own["name"] in image["missing"] for image in IMAGES)
        assert own["confidence"] == pytest.approx(np.mean([image["confidence"] for image in having]), abs=1e-3)
    assert sum(told["histograms"]["confidence"]) == NUM_IMAGES - FAILING


def test_an_image_and_its_neighbours(viewer: Viewer) -> None:
    ids = viewer.get("/api/list", **{"class": "dog", "sort": "iou"}).body.decode().split()
    told = viewer.get("/api/image", id=ids[3], **{"class": "dog", "sort": "iou"}).json
    assert (told["place"], told["previous"], told["next"], told["total"]) == (3, ids[2], ids[4], len(ids))
    assert viewer.get("/api/image", id=ids[0], **{"class": "dog", "sort": "iou"}).json["previous"] is None
    outside = viewer.get("/api/image", id="img-00003", **{"class": "dog"}).json
    assert (outside["place"], outside["previous"]) == (None, None)
    failed = viewer.get("/api/image", id="img-00001").json
    assert failed["failures"] == [{"stage": "seeds/fine", "error_type": "ValueError", "message": "<b>too dark</b>"}]


def picture(viewer: Viewer, path: str, **query: Any) -> np.ndarray:
    answer = viewer.get(path, **query)
    assert answer.status == 200, answer.body
    return np.asarray(Image.open(BytesIO(answer.body)).convert("RGBA"))


def test_layers_are_what_the_tables_hold(viewer: Viewer) -> None:
    number = 10
    image_id, look = f"img-{number:05d}", number % 16
    told = viewer.get("/api/image", id=image_id).json
    assert told["layers"] == ["fine", "coarse", "map", "whole", "part", "subpart", "doubt", "truth"]
    assert (told["height_px"], told["width_px"]) == (HEIGHT, WIDTH)
    for layer in told["layers"]:
        assert picture(viewer, "/layer", id=image_id, layer=layer).shape == (HEIGHT, WIDTH, 4)
    labels = label_map(look)
    fine = picture(viewer, "/layer", id=image_id, layer="fine")
    np.testing.assert_array_equal(fine[labels > 0][:, :3], PALETTE[labels[labels > 0]])
    np.testing.assert_array_equal(fine[..., 3], np.where(labels > 0, 255, 0))
    whole = picture(viewer, "/layer", id=image_id, layer="whole")[..., 3] > 0
    masks = superpixels_of(look)
    np.testing.assert_array_equal(whole, masks.mask(1) | masks.mask(2))
    one = picture(viewer, "/superpixel", id=image_id, index=0)
    np.testing.assert_array_equal(one[..., 3] > 0, masks.mask(0))
    assert picture(viewer, "/layer", id=image_id, layer="doubt")[0, 0].tolist() == [255, 0, 0, 255 - 128]
    for layer in ("fine", "image", "map", "truth"):
        assert max(picture(viewer, "/thumbnail", id=image_id, layer=layer).shape[:2]) <= 320


@pytest.mark.parametrize("layer", ["against", "nothing", "../fine", "prediction"])
def test_a_layer_that_is_not_there(viewer: Viewer, layer: str) -> None:
    assert viewer.get("/layer", id="img-00010", layer=layer).status == 404


def test_superpixels_at_a_pixel_small_ones_first(viewer: Viewer) -> None:
    masks = superpixels_of(10)
    for x, y in ((5, 7), (12, 5), (20, 10), (0, 0)):
        told = viewer.get("/api/at", id="img-00010", x=x, y=y).json["superpixels"]
        expected = sorted((int(masks.mask(i).sum()), i) for i in range(3) if masks.mask(i)[y, x])
        assert [(own["area_px"], own["index"]) for own in told] == expected
    assert [own["class"] for own in viewer.get("/api/at", id="img-00010").json["superpixels"]] == [1, 1, 2]
    for query in ({"x": WIDTH, "y": 0}, {"x": -1, "y": 0}, {"x": "a", "y": 0}):
        assert viewer.get("/api/at", id="img-00010", **query).status == 400


def test_a_comparison_has_what_changed_most_first(run_url: str, tmp_path: Path) -> None:
    # The other run has the same images in other parts, with other seeds, and not all of them.
    other = make_run(Folder(str(tmp_path / "other")), 30, 11, shift=1)
    with viewing(run_url, against=other.folder.url) as own:
        while (told := own.get("/api/run").json["compared"])["done"] < max(1, told["all"]):
            assert told["error"] is None
        share = {f"img-{n:05d}": float((label_map(n % 16) != label_map(n % 16, 1)).mean()) for n in range(FAILING, 30)}
        images = own.get("/api/images", sort="changed", size=100).json["images"]
        assert {image["id"]: image["changed"] for image in images if image["changed"] is not None} == pytest.approx(
            share, abs=1e-3
        )
        assert images[0]["changed"] == max(image["changed"] for image in images if image["changed"] is not None)
        assert "against" in own.get("/api/image", id=images[0]["id"]).json["layers"]
        one, two = (picture(own, "/layer", id=images[0]["id"], layer=layer) for layer in ("fine", "against"))
        assert (one != two).any()


@pytest.mark.parametrize("num_images", [20_000])
def test_the_index_is_bounded(num_images: int, tmp_path: Path) -> None:
    run = make_run(Folder(str(tmp_path / "run")), num_images, 2_500)
    with viewing(run.folder.url) as own:
        snapshot = own.served.opened.index.snapshot
        assert len(snapshot) == num_images
        assert snapshot.num_bytes() < 100 * num_images
        told = own.get("/api/images", page=10**6).json
        assert told["pages"] == -(-num_images // told["size"])
        worst = sorted(range(num_images), key=lambda number: (np.float32(confidence_of(number)), number))
        assert [image["id"] for image in told["images"]] == [f"img-{n:05d}" for n in worst[-len(told["images"]) :]]


def test_a_first_screen_needs_the_first_parts_alone(tmp_path: Path) -> None:
    run = make_run(Folder(str(tmp_path / "run")), 40, 2)
    own = RunIndex.begin(run, viewing_vocabulary())
    assert (own.snapshot.num_parts, own.snapshot.all_parts, len(own.snapshot)) == (8, 20, 16)
    assert not own.snapshot.is_whole
    own.read_all()
    assert own.snapshot.is_whole
    assert len(own.snapshot) == 40


def viewing_vocabulary() -> Any:
    from fmwsss.core.vocabularies import custom_vocabulary
    from tests.support.seeded_run import CLASSES

    return custom_vocabulary(CLASSES)


def test_seeds_that_were_made_again_are_seen(own_run_url: str) -> None:
    with viewing(own_run_url) as own:
        before, told = picture(own, "/layer", id="img-00010", layer="fine"), own.get("/api/run").json
        again = Run(Folder(own_run_url))
        again.do_again("seeds/fine", again.parts("seeds/fine"))
        make_run(Folder(own_run_url), 20, 7, shift=1)
        assert own.get("/api/run").json["started"] != told["started"], "addresses of pictures are other ones now"
        own.wait_for_index()
        assert (picture(own, "/layer", id="img-00010", layer="fine") != before).any()
