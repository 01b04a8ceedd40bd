"""A run that was corrected: its next start makes exactly the corrected images again, and later starts nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import decode_label_png
from fmwsss.core.schemas import superpixels_from_row
from fmwsss.jobs.review.corrections import FOLDER, append, new_row
from fmwsss.jobs.run_layout import vocabulary_of
from tests.support.fault_injection import DEMO, ROOT, SMALL


def start(url: Path, *more: str) -> str:
    command = [sys.executable, "-m", "fmwsss.jobs", "run", DEMO, f"run={url}", *SMALL, *more]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows_of(url: Path, stage: str) -> dict[str, dict[str, Any]]:
    run = Run(Folder(str(url)))
    tables = [run.read_part(stage, part) for part in run.parts(stage)]
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def changed(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    assert list(before) == list(after)
    return [image_id for image_id in before if before[image_id] != after[image_id]]


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_exactly_the_corrected_images_change(undisturbed: str, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(undisturbed, url)
    fine, coarse = rows_of(url, "seeds/fine"), rows_of(url, "seeds/coarse")
    images, superpixels = rows_of(url, "images"), rows_of(url, "superpixels")
    classes = vocabulary_of(Run(Folder(str(url)))).classes
    folder, (painted, relabelled, struck, *_) = Folder(str(url)), list(fine)
    masks = superpixels_from_row(superpixels[painted])
    index = int(np.argmax(masks.area_px()))
    region = {"height_px": masks.height_px, "width_px": masks.width_px, "rle": masks.rle[index]}
    another = next(name for name in classes if name not in fine[painted]["classes"])
    new = next(name for name in classes if name not in fine[relabelled]["classes"])
    append(folder, [new_row(painted, "paint", "ann", class_name=another, **region)])
    append(folder, [new_row(relabelled, "add", "bob", class_name=new)])
    append(folder, [new_row(struck, "strike", "bob", class_name=fine[struck]["classes"][0])])
    append(folder, [new_row(list(fine)[5], "accept", "bob")])  # a verdict changes no seed
    told = start(url)
    assert "review: 3 images corrected since the last start" in told
    after = rows_of(url, "seeds/fine")
    assert changed(fine, after) == [painted, relabelled, struck]
    assert changed(coarse, rows_of(url, "seeds/coarse")) == [relabelled, struck]
    assert rows_of(url, "superpixels") == superpixels
    assert rows_of(url, "images") == images, "what the dataset said stays"
    expected = decode_label_png(fine[painted]["seed"])
    expected[masks.mask(index)] = classes.index(another) + 1
    np.testing.assert_array_equal(decode_label_png(after[painted]["seed"]), expected)
    png = (url / f"seeds/fine/png/{painted}.png").read_bytes()
    assert png == after[painted]["seed"]
    assert set(after[relabelled]["classes"]) == {*fine[relabelled]["classes"], new}
    assert after[struck]["classes"] == fine[struck]["classes"][1:]
    # Nothing is left to do, and nothing is done.
    assert "review:" not in start(url)
    assert rows_of(url, "seeds/fine") == after
    # What is taken back is as it was, to the last bit.
    rows = [row for name in folder.child(FOLDER).list() if not name.startswith("_")
            for row in folder.child(FOLDER).read_table(name).to_pylist()]  # fmt: skip
    undone = [new_row(own["image_id"], "undo", "ann", undoes=own["correction_id"]) for own in rows]
    for row in undone:
        append(folder, [row])
    assert "review: 3 images corrected" in start(url)
    assert changed(fine, rows_of(url, "seeds/fine")) == []
    assert changed(coarse, rows_of(url, "seeds/coarse")) == []
    # An undo that is undone; corrections survive --from.
    append(folder, [new_row(own["image_id"], "undo", "ann", undoes=own["correction_id"]) for own in undone])
    start(url, "--from", "seeds/fine")
    again = rows_of(url, "seeds/fine")
    assert again[painted]["seed"] == after[painted]["seed"]
    assert again[relabelled]["classes"] == after[relabelled]["classes"]
