"""JSON files of a run."""

from __future__ import annotations

import json
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.storage_errors import DamagedFile

ADVICE = "`fmwsss verify RUN --mend`, and the command that made the run, make it again"


def read_json(folder: Folder, name: str) -> Any:
    """What a JSON file holds.

    Args:
        folder: where it lies.
        name: relative to the folder.

    Returns:
        Dictionaries, lists, numbers, strings.

    Raises:
        StorageError: it can't be read.
        DamagedFile: it is no JSON.
    """
    data = folder.read(name)
    try:
        return json.loads(data)
    except ValueError:
        raise DamagedFile(f"{folder.url}/{name} is damaged: it is no JSON; {ADVICE}") from None
