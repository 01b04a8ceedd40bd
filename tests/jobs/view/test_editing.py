"""Corrections: what a page sends becomes rows, what is wrong is refused, and of several people's nothing is lost."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run, part_name
from fmwsss.core.images import encode_label_png
from fmwsss.core.labels import PALETTE
from fmwsss.core.schemas import IMAGES, PREDICTIONS, REVIEW
from fmwsss.jobs.review.corrections import ReviewLog, standing
from fmwsss.jobs.stages import begin_stage, finish_stage
from tests.support.seeded_run import HEIGHT, WIDTH, label_map, make_run, superpixels_of
from tests.support.viewer import viewing

IMAGE = "img-00010"


def files_of(url: str) -> dict[str, bytes]:
    return {str(path.relative_to(url)): path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def test_a_correction_is_a_row_and_nothing_else_is_written(own_run_url: str) -> None:
    before = files_of(own_run_url)
    with viewing(own_run_url, edit=True, author="bea") as own:
        told = own.correct(image=IMAGE, action="paint", superpixel=2, **{"class": "cow"})
        assert told.status == 200
        assert own.correct(image=IMAGE, action="strike", **{"class": "dog"}).json["corrections"] == 2
        assert own.correct(image=IMAGE, action="accept").json["verdict"] == "accepted"
        shown = own.get("/api/image", id=IMAGE).json
        assert (shown["classes"], shown["verdict"], shown["corrections"]) == (["cat", "cow"], "accepted", 3)
        assert own.get("/api/list", verdict="accepted").body.decode().split() == [IMAGE]
        assert IMAGE not in own.get("/api/list", verdict="untouched").body.decode()
        layer = own.get("/layer", id=IMAGE, layer="fine").body
    after = files_of(own_run_url)
    new = sorted(after.keys() - before.keys())
    assert {name: after[name] for name in before} == before
    assert len(new) == 3
    assert all(name.startswith("review/") and name.endswith(".parquet") for name in new)
    rows = ReviewLog(Folder(own_run_url)).rows()
    assert Folder(own_run_url).read_table(new[0]).schema.equals(REVIEW)
    assert [row["action"] for row in rows] == ["paint", "strike", "accept"]
    assert {row["author"] for row in rows} == {"bea"}
    assert (rows[0]["class_name"], rows[0]["rle"]) == ("cow", superpixels_of(10).rle[2])
    expected = label_map(10)
    expected[superpixels_of(10).mask(2)] = 3
    painted = np.asarray(Image.open(BytesIO(layer)).convert("RGBA"))
    np.testing.assert_array_equal(painted[expected > 0][:, :3], PALETTE[expected[expected > 0]])


def test_undo_takes_back_the_last_of_ones_own(own_run_url: str) -> None:
    with viewing(own_run_url, edit=True, author="ann") as ann, viewing(own_run_url, edit=True, author="bob") as bob:
        ann.correct(image=IMAGE, action="add", **{"class": "cow"})
        bob.correct(image=IMAGE, action="strike", **{"class": "cat"})
        assert ann.correct(image=IMAGE, action="undo").json["corrections"] == 1
        own = standing(ReviewLog(Folder(own_run_url)).rows())[IMAGE]
        assert (own.added, own.struck) == ((), ("cat",))
        assert bob.correct(image=IMAGE, action="undo").json["corrections"] == 0
        answer = bob.correct(image=IMAGE, action="undo")
        assert answer.status == 400
        assert "nothing to undo" in answer.json["error"]
    assert len(ReviewLog(Folder(own_run_url)).rows()) == 4, "what was taken back is still told"


@pytest.mark.parametrize(
    "told",
    [
        {"image": IMAGE}, {"image": IMAGE, "action": "delete"}, {"image": IMAGE, "action": "add"},
        {"image": IMAGE, "action": "add", "class": "<b>"}, {"image": IMAGE, "action": "paint", "superpixel": 3},
        {"image": IMAGE, "action": "paint", "superpixel": -1}, {"image": IMAGE, "action": "paint", "superpixel": "0"},
        {"image": "img-99999", "action": "accept"}, {"image": "../x", "action": "accept"}, {"image": 3},
        {"image": IMAGE, "action": "accept", "path": "x"}, {"image": IMAGE, "action": "add", "class": ["cow"]}, [], 3,
        {"image": IMAGE, "action": {"a": 1}},
    ],
)  # fmt: skip
def test_what_is_no_correction_is_refused_in_one_line(own_run_url: str, told: object) -> None:
    with viewing(own_run_url, edit=True) as own:
        headers = {"cookie": own.cookie, "x-fmwsss": "1"}
        answer = own.ask("POST", "/api/corrections", headers, json.dumps(told).encode())
        assert answer.status in (400, 404)
        assert len(answer.json["error"].splitlines()) == 1
        assert own.ask("POST", "/api/corrections", headers, b"{").status == 400
        assert own.ask("POST", "/api/corrections", headers, b"x" * (2 << 20)).status == 413
    assert not Path(own_run_url, "review").exists()


def test_two_hundred_at_once_lose_nothing(own_run_url: str) -> None:
    with viewing(own_run_url, edit=True, author="ann") as ann, viewing(own_run_url, edit=True, author="bob") as bob:

        def correct(number: int) -> str:
            person = (ann, bob)[number % 2]
            image = f"img-{number % 20:05d}"
            answer = person.correct(image=image, action="paint", superpixel=number % 3, **{"class": "cow"})
            assert answer.status == 200, answer.body
            return answer.json["id"]

        with ThreadPoolExecutor(40) as pool:
            ids = list(pool.map(correct, range(200)))
        assert len(set(ids)) == 200
    rows = ReviewLog(Folder(own_run_url)).rows()
    assert sorted(row["correction_id"] for row in rows) == sorted(ids)
    assert sorted(row["author"] for row in rows) == ["ann"] * 100 + ["bob"] * 100
    assert sum(own.num_corrections for own in standing(rows).values()) == 200
    assert {name for name in Folder(own_run_url).list("review/") if not name.endswith(".parquet")} == set()


def test_on_an_object_store(s3_url: str, tmp_path: Path) -> None:
    folder = Folder(s3_url).child(f"viewed/{tmp_path.name}")
    make_run(folder, 12, 5)
    with viewing(folder.url, edit=True) as own:
        assert own.get("/api/images", size=5).json["total"] == 12
        assert own.get("/thumbnail", id=IMAGE).status == 200
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(lambda _: own.correct(image=IMAGE, action="accept").status, range(16)))
        assert told == [200] * 16
    assert len(ReviewLog(folder).rows()) == 16


def test_predictions_of_a_segmenter(own_run_url: str) -> None:
    inner = Run(Folder(own_run_url).child("predictions/new"))
    for stage, schema in (("images", IMAGES), ("predicted", PREDICTIONS)):
        started = begin_stage(inner, stage, {}, [])
        rows = Run(Folder(own_run_url)).read_part("images", part_name(0)).to_pylist()
        if stage == "predicted":
            labels = encode_label_png(label_map(4))
            size = {"height_px": HEIGHT, "width_px": WIDTH, "mean_confidence": 0.5}
            own = {**dict.fromkeys(schema.names), **size, "labels": labels, "classes": ["cat"]}
            rows = [{**own, "image_id": row["image_id"]} for row in rows]
        inner.write_part(stage, part_name(0), rows, schema, [])
        finish_stage(inner, started, [part_name(0)], len(rows), 0)
    with viewing(inner.folder.url) as own:
        assert own.get("/api/run").json["base"] == "predicted"
        assert own.get("/api/image", id="img-00003").json["layers"] == ["prediction", "truth"]
        seen = own.get("/layer", id="img-00003", layer="fine").body
        assert seen == own.get("/layer", id="img-00003", layer="prediction").body
