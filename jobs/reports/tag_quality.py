"""How good tags are, where the dataset has labels of its own to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fmwsss.cluster.storage.ledger import NUM_READERS, Run
from fmwsss.core.tags.threshold import quality


def tag_quality(run: Run, classes: Sequence[str]) -> dict[str, Any]:
    """Counts of tags, and `precision`, `recall` and `map` over the images that the dataset has labels of.

    Args:
        run: the run folder, with `tags/labels`.
        classes: of the run.

    Returns:
        `images`, `labels_per_image`, `images_judged`, and the three figures where an image can be judged.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        rows = [row for part in pool.map(lambda part: _rows_of(run, part), run.parts("tags/labels")) for row in part]
    told: dict[str, Any] = {
        "images": len(rows),
        "labels_per_image": sum(len(row["tags"]) for row in rows) / max(1, len(rows)),
    }
    known = [row for row in rows if row["classes"]]
    told["images_judged"] = len(known)
    if not known:
        return told
    number = {name: index for index, name in enumerate(classes)}
    shown = np.zeros((len(known), len(classes)), bool)
    for row, own in zip(known, shown, strict=True):
        own[[number[name] for name in row["classes"]]] = True
    tags = [[number[name] for name in row["tags"]] for row in known]
    return told | quality(np.asarray([row["scores"] for row in known], np.float32), tags, shown)


def _rows_of(run: Run, part: str) -> list[dict[str, Any]]:
    """The images of a part with the labels of the dataset, scores and tags."""
    classes, scores = (
        {row["image_id"]: row[column] for row in run.read_part(stage, part, ["image_id", column]).to_pylist()}
        for stage, column in (("images", "classes"), ("tags/scores", "scores"))
    )
    return [
        {"tags": row["classes"], "classes": classes[row["image_id"]] or [], "scores": scores[row["image_id"]]}
        for row in run.read_part("tags/labels", part, ["image_id", "classes"]).to_pylist()
    ]
