"""Files of an export on their way: small ones in batches, a long JSON list record by record."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from fmwsss.cluster.storage.folder import Folder

BATCH_FILES, BATCH_BYTES = 64, 32 << 20


class FileBatch:
    """Writes files in batches, so that a disk or a store is waited for once for many; ends with `flush`."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._files: dict[str, bytes] = {}

    def add(self, name: str, data: bytes) -> None:
        """One file, which is written now or later.

        Args:
            name: of the file in the folder.
            data: its bytes.
        """
        self._files[name] = data
        if len(self._files) >= BATCH_FILES or sum(map(len, self._files.values())) >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        self.folder.write_many(self._files)
        self._files = {}


class JsonLists:
    """A JSON object of long lists that never is in memory: each list grows in a file of its own until `write`."""

    def __init__(self, *names: str) -> None:
        self._files = {name: tempfile.TemporaryFile("w+b") for name in names}  # noqa: SIM115 - closed by `write`

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """One record more.

        Args:
            name: of the list.
            record: what JSON can hold.
        """
        file = self._files[name]
        file.write((b",\n" if file.tell() else b"") + json.dumps(record, ensure_ascii=False).encode())

    def write(self, folder: Folder, name: str, head: Mapping[str, Any], as_list: bool = False) -> None:
        """Puts the lists together behind the keys of `head`, as one file, and closes them.

        Args:
            folder: where the file goes.
            name: of the file.
            head: keys that stand before the lists.
            as_list: write the one list alone, without keys.
        """
        handle, path = tempfile.mkstemp(suffix=".json")
        try:
            with os.fdopen(handle, "wb") as whole:
                if not as_list:
                    begin = json.dumps(head, ensure_ascii=False).encode().removesuffix(b"}")
                    whole.write(begin)
                first = as_list or not head
                for key, file in self._files.items():
                    if not as_list:
                        whole.write((b"" if first else b", ") + json.dumps(key).encode() + b": ")
                    first = False
                    whole.write(b"[\n")
                    file.seek(0)
                    while piece := file.read(1 << 20):
                        whole.write(piece)
                    whole.write(b"\n]")
                whole.write(b"\n" if as_list else b"}\n")
            folder.upload(name, path)
        finally:
            os.unlink(path)
            for file in self._files.values():
                file.close()
