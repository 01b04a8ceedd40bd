"""Images of a part with the labels of the run: those of the dataset, or those that came of tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmwsss.cluster.storage.ledger import Run


def read_labelled(run: Run, part: str, columns: Sequence[str], labels: str = "images") -> list[dict[str, Any]]:
    """Rows of IMAGES, with the labels of the run in `classes`; an image without tags is left out.

    Args:
        run: the run folder.
        part: of `images/`.
        columns: of IMAGES, `image_id` and `classes` among them.
        labels: the stage that has the labels (`LabelsSection.stage`).
    """
    if labels == "images":
        return run.read_part("images", part, columns=columns).to_pylist()
    table = run.read_part(labels, part, columns=["image_id", "classes"])
    classes = dict(zip(table["image_id"].to_pylist(), table["classes"].to_pylist(), strict=True))
    rows = run.read_part("images", part, columns=[name for name in columns if name != "classes"]).to_pylist()
    return [{**row, "classes": classes[row["image_id"]]} for row in rows if row["image_id"] in classes]
