"""The first operator of every stage that looks at images: one shard of the run's images, decoded on a CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows, start_rows
from fmwsss.cluster.execution.subprocess_decoder import decoder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.storage_errors import DamagedFile
from fmwsss.core.images import UNLIMITED
from fmwsss.core.schemas import DECODED_PAYLOAD, IMAGES
from fmwsss.jobs.images.labelled import read_labelled
from fmwsss.jobs.review.applied import Relabelled, relabel

ENCODED_PAYLOAD = [IMAGES.field("image"), IMAGES.field("classes")]


def decode_shard(
    block: pa.Table,
    run: Run,
    stage: str,
    skip_sha256: Collection[str] = (),
    labels: str = "images",
    relabelled: Mapping[str, Relabelled] | None = None,
) -> pa.Table:
    """The images of one part of `images/`, decoded. The truth column is never read here.

    Args:
        block: of one row, which names the part.
        run: the run folder.
        stage: name of the stage that looks at them, for the failures table.
        skip_sha256: images that are left out, by the sha256 of their bytes.
        labels: the stage that has their labels, as in `read_labelled`.
        relabelled: what people said of labels, by image.

    Returns:
        Rows of DECODED_PAYLOAD; an image that can't be decoded is a failure among them.

    Raises:
        DamagedFile: the bytes of an image are not those that were taken in.
    """
    part = block["part"][0].as_py()
    read = read_labelled(run, part, ["image_id", "image", "classes", "sha256"], labels)
    rows = [row for row in read if row["sha256"] not in skip_sha256]
    relabel(rows, relabelled or {})
    for row in rows:
        # Parts of an earlier release have no checksums of their own.
        if hashlib.sha256(row["image"]).hexdigest() != row.pop("sha256"):
            name = f"{run.folder.url}/images/{run.file_of('images', part)}"
            raise DamagedFile(f"the bytes of image {row['image_id']} in {name} have changed; {run.how_to_mend()}")
    encoded = start_rows(part, rows, ENCODED_PAYLOAD)
    return map_rows(encoded, decode_row, DECODED_PAYLOAD, stage)


def decode_row(row: dict[str, Any]) -> dict[str, Any]:
    """The payload of a row of ENCODED_PAYLOAD, decoded."""
    # The limits were checked when the image came in.
    pixels = decoder().rgb(row["image"], max_pixels=UNLIMITED)
    height_px, width_px = pixels.shape[:2]
    return {"height_px": height_px, "width_px": width_px, "classes": row["classes"], "pixels": pixels.tobytes()}
