"""A stage in one file: the mean brightness of every image. A run file asks for it by an even `random_seed`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows, start_rows, write_block
from fmwsss.cluster.execution.shard_pipeline import Operator
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, ImageError, decode_rgb
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Declaration, Stage
from fmwsss.jobs.images.decode import ENCODED_PAYLOAD

NAME = "statistics/brightness"
BRIGHTNESS = pa.schema([("image_id", pa.string()), ("brightness", pa.float64())])
BROKEN = "toy-000001"


def stages(config: RunConfig) -> list[Stage]:
    if config.random_seed % 2:
        return []
    return [
        Stage(
            name=NAME,
            unit="images",
            reads=("images",),
            settings=lambda: {"scale": 255},
            operators=lambda run: [Operator(brightness_shard, {"run": run}, num_cpus=0.5)],
        )
    ]


DECLARATIONS = (Declaration(NAME, "Measure how bright every image is.", stages, old_names=("lightness",)),)


def brightness_shard(block: pa.Table, run: Run) -> pa.Table:
    part = block["part"][0].as_py()
    images = run.read_part("images", part, columns=["image_id", "image", "classes"]).to_pylist()

    def measure(row: dict) -> dict:
        if row["image_id"] == BROKEN:
            raise ImageError("it is too dark")
        return {"brightness": float(np.mean(decode_rgb(row["image"], UNLIMITED))) / 255}

    rows = map_rows(start_rows(part, images, ENCODED_PAYLOAD), measure, [BRIGHTNESS.field("brightness")], NAME)
    return write_block(rows, run, NAME, BRIGHTNESS)
