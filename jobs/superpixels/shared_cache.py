"""Superpixels that runs share: one object an image, named by what it depends on and by nothing else.

<folder>/<key>/<first two digits>/<sha256 of the encoded image>.parquet

The key is the sha256 of SAM's weights and of the settings of the proposals: a run with another SAM, other settings or
another version of this program's proposals finds nothing here and adds its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from fmwsss.cluster.models.loaders import check, load_sam
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.models.weights import state_sha256
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.parquet import table_bytes
from fmwsss.cluster.storage.storage_errors import DamagedFile
from fmwsss.core.schemas import SUPERPIXELS
from fmwsss.core.superpixels.proposal_settings import ProposalSettings

# To be raised whenever the same weights and settings begin to give other superpixels.
VERSION = 2  # 1: half precision was of SAM's decoder too
# How the work is divided does not change what comes out beyond the last bits of a sum.
_WITHOUT_EFFECT = ("points_per_batch",)
_NUM_THREADS = 8


@dataclass(frozen=True)
class SharedSuperpixels:
    """The superpixels of one SAM and one set of settings. Small and picklable.

    Attributes:
        folder: of the key.
    """

    folder: Folder

    @classmethod
    def of(cls, url: str, sam_sha256: str, settings: ProposalSettings) -> SharedSuperpixels:
        """Those in the shared folder `url`.

        Args:
            url: of the folder for all runs.
            sam_sha256: of the weights.
            settings: those that change superpixels are a part of the name.

        Returns:
            A folder in it.
        """
        words = {name: value for name, value in asdict(settings).items() if name not in _WITHOUT_EFFECT}
        content = json.dumps([VERSION, sam_sha256, words], sort_keys=True)
        return cls(Folder(url).child(hashlib.sha256(content.encode()).hexdigest()[:32]))

    def known(self, image_sha256: Iterable[str]) -> set[str]:
        """Those of the images that are there."""
        wanted = sorted(set(image_sha256))
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            # One of no bytes is what a writer of an earlier release left when it was killed.
            there = pool.map(lambda name: bool(self.folder.size(_file(name))), wanted)
            return {name for name, is_there in zip(wanted, there, strict=True) if is_there}

    def read(self, image_sha256: Iterable[str]) -> dict[str, dict[str, Any]]:
        """By image, the rows of SUPERPIXELS (their `image_id` is null: two runs may name an image differently)."""
        wanted = sorted(set(image_sha256))
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            tables = pool.map(self._read_one, wanted)
            return {name: table.to_pylist()[0] for name, table in zip(wanted, tables, strict=True)}

    def _read_one(self, image_sha256: str) -> pa.Table:
        try:
            return self.folder.read_table(_file(image_sha256))
        except DamagedFile as error:
            self.folder.delete([_file(image_sha256)])
            raise DamagedFile(f"{error}; it is deleted, and the same command makes it again") from error

    def add(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes rows of SUPERPIXELS by image. An image that is there is written again, with the same content."""
        files = {}
        for name, row in rows.items():
            files[_file(name)] = table_bytes([{**row, "image_id": None}], SUPERPIXELS)
        self.folder.write_many(files)


def sam_sha256(spec: ModelSpec) -> str:
    """What names the weights of a SAM: its file's sha256, or, if it has none, that of the loaded network."""
    # Of a factory the run file has no sha256, unless it is pinned.
    return check(spec, "sam").get("sha256") or spec.sha256 or state_sha256(load_sam(spec))


def _file(image_sha256: str) -> str:
    return f"{image_sha256[:2]}/{image_sha256}.parquet"
