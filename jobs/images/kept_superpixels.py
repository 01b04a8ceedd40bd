"""Superpixels of images that did not change, while the parts that they were in are made again: one file an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.parquet import table_bytes
from fmwsss.core.schemas import SUPERPIXELS

FOLDER = "superpixels/_kept"


def keep(run: Run, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes superpixels aside, one file an image.

    Args:
        run: the run folder.
        rows: of SUPERPIXELS, by the sha256 of their images.
    """
    _folder(run).write_many({f"{sha256}.parquet": table_bytes([row], SUPERPIXELS) for sha256, row in rows.items()})


def are_there(run: Run) -> bool:
    """Whether superpixels of any image are kept."""
    return bool(_folder(run).list())


def kept(run: Run, sha256s: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The superpixels that are kept of some images.

    Args:
        run: the run folder.
        sha256s: of the images' bytes.

    Returns:
        Rows of SUPERPIXELS by sha256, of those that are there.
    """
    there = set(_folder(run).list())
    return {
        sha256: _folder(run).read_table(f"{sha256}.parquet").to_pylist()[0]
        for sha256 in sorted(set(sha256s))
        if f"{sha256}.parquet" in there
    }


def forget(run: Run) -> None:
    """Deletes them, when the stage is complete."""
    if are_there(run):
        _folder(run).delete_all()


def _folder(run: Run) -> Folder:
    return run.folder.child(FOLDER)
