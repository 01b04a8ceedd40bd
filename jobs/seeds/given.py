"""Class maps that were made elsewhere, on their way into a stage of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows, start_rows
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.class_maps.given_maps import given_maps, read_arrays
from fmwsss.core.class_maps.maps import ClassMaps, mixed
from fmwsss.core.errors import InputError
from fmwsss.core.schemas import GIVEN_PAYLOAD, MAPS_PAYLOAD, maps_from_bytes, maps_row, maps_to_bytes
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.class_maps import GivenSource
from fmwsss.jobs.images.labelled import read_labelled
from fmwsss.jobs.review.applied import Relabelled, relabel

SIZE_PAYLOAD = MAPS_PAYLOAD[:3]


def read_given(
    source: GivenSource, image_id: str, class_names: Sequence[str], vocabulary: Vocabulary, rows: Mapping[str, Any]
) -> ClassMaps:
    """The maps of one image.

    Args:
        source: where they are.
        image_id: of the image.
        class_names: its classes.
        vocabulary: of the run.
        rows: of `rows_of`.

    Raises:
        ValueError: there are none, or they do not fit; the message names the file.
    """
    folder = Folder(source.path)
    if source.format == "parquet":
        name = f"{folder.url}, image {image_id}"
        if image_id not in rows:
            raise InputError(f"{name}: no Parquet file there has a row of it")
        content = _content_of(rows[image_id], source.column, name)
    else:
        file = f"{image_id}.{source.format}"
        name = f"{folder.url}/{file}"
        if not folder.exists(file):
            raise InputError(f"{name}: no such file of class maps")
        try:
            content = read_arrays(folder.read(file))
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None
    try:
        return given_maps(content, class_names, vocabulary, source.first_key)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _content_of(row: Mapping[str, Any], column: str, name: str) -> dict[str, Any]:
    if row[column] is None:
        raise InputError(f"{name}: it has no {column}")
    shape = (len(row["classes"]), row["grid_height"], row["grid_width"])
    return {"keys": np.array(row["classes"], dtype=str), "maps": maps_from_bytes(row[column], *shape)}


def rows_of(source: GivenSource, image_ids: Sequence[str], part: str) -> dict[str, Any]:
    """Those rows of the Parquet files of a source that are of some images, by id.

    Args:
        source: of the maps; of another format than Parquet there are none.
        image_ids: of one part.
        part: its name; a file of that name is looked at first, for another run of the same images has one.
    """
    if source.format != "parquet":
        return {}
    folder, missing, found = Folder(source.path), set(image_ids), {}
    names = [name for name in folder.list("") if name.endswith(".parquet") and "/" not in name]
    for name in sorted(names, key=lambda name: name != part):
        if not missing:
            break
        here = set(folder.read_table(name, columns=["image_id"])["image_id"].to_pylist()) & missing
        if here:
            table = folder.read_table(name, ["image_id", "classes", "grid_height", "grid_width", source.column])
            found |= {row["image_id"]: row for row in table.to_pylist() if row["image_id"] in here}
            missing -= here
    return found


def add_given(block: pa.Table, sources: Sequence[GivenSource], vocabulary: Vocabulary, stage: str) -> pa.Table:
    """DECODED_PAYLOAD rows in, GIVEN_PAYLOAD rows out, with the maps of every given source.

    Args:
        block: decoded images.
        sources: of the run file.
        vocabulary: of the run.
        stage: for the failures table.
    """
    tables = _tables(block, sources)

    def with_maps(row: dict[str, Any]) -> dict[str, Any]:
        maps = _all_given(row, sources, tables, vocabulary)
        given = [
            {"grid_height": own.cam.shape[1], "grid_width": own.cam.shape[2], "maps": maps_to_bytes(own.cam)}
            for own in maps
        ]
        return {**{field.name: row[field.name] for field in GIVEN_PAYLOAD[:-1]}, "given": given}

    return map_rows(block, with_maps, GIVEN_PAYLOAD, stage)


def given_shard(
    block: pa.Table,
    run: Run,
    sources: Sequence[GivenSource],
    weights: Sequence[float],
    vocabulary: Vocabulary,
    stage: str,
    labels: str = "images",
    relabelled: Mapping[str, Relabelled] | None = None,
) -> pa.Table:
    """A block that names one part of `images/` in, MAPS_PAYLOAD rows of given maps alone out; no image is decoded.

    Args:
        block: of one row.
        run: the run folder.
        sources: of the run file.
        weights: of each source in the mixture.
        vocabulary: of the run.
        stage: for the failures table.
        labels: the stage that has the labels, as in `read_labelled`.
        relabelled: what people said of labels, by image.
    """
    part = block["part"][0].as_py()
    columns = ["image_id", "height_px", "width_px", "classes"]
    rows = read_labelled(run, part, columns, labels)
    relabel(rows, relabelled or {})
    started = start_rows(part, rows, SIZE_PAYLOAD)
    tables = _tables(started, sources)

    def maps_of(row: dict[str, Any]) -> dict[str, Any]:
        names = _in_order(row["classes"], vocabulary)
        maps = mixed(_all_given(row, sources, tables, vocabulary), weights)
        return maps_row(row, names, maps)

    return map_rows(started, maps_of, MAPS_PAYLOAD, stage)


def _tables(block: pa.Table, sources: Sequence[GivenSource]) -> list[dict[str, Any]]:
    image_ids = [image_id for image_id in block["image_id"].to_pylist() if image_id is not None]
    return [rows_of(source, image_ids, block["part"][0].as_py()) for source in sources]


def _all_given(
    row: Mapping[str, Any], sources: Sequence[GivenSource], tables: Sequence[Mapping[str, Any]], vocabulary: Vocabulary
) -> list[ClassMaps]:
    names = _in_order(row["classes"], vocabulary)
    if not names:
        return [ClassMaps(np.zeros((0, 0, 0), np.float32), None) for _ in sources]
    return [
        read_given(source, row["image_id"], names, vocabulary, rows)
        for source, rows in zip(sources, tables, strict=True)
    ]


def _in_order(classes: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.classes[index - 1] for index in sorted(vocabulary.indices(classes))]
