"""What a stage that learns leaves behind as it goes: model, optimizer, the next iteration and the history until there.

No state of a random generator is kept: what is drawn depends on the run's seed, the iteration and the image alone.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.seal import sealed, unsealed
from fmwsss.cluster.storage.storage_errors import DamagedFile

if TYPE_CHECKING:
    import torch

CHECKPOINT_FILE = "_checkpoint.pt"
HISTORY_FILE = "history.json"  # stays when the stage is complete


def save(
    folder: Folder,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    history: list[dict[str, float]],
) -> None:
    """Writes the checkpoint of a stage over the one before.

    Args:
        folder: of the stage.
        model: what is learned.
        optimizer: with its moments.
        iteration: the next one.
        history: losses so far.
    """
    import torch

    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": iteration,
        "history": history,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(CHECKPOINT_FILE, sealed(buffer.getvalue()))


def restore(
    folder: Folder, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Goes on where an earlier start stopped: the iteration to begin with, and the history until there.

    Args:
        folder: of the stage.
        model: changed in place.
        optimizer: changed in place.

    Returns:
        0 and an empty history where there is no checkpoint.
    """
    state = _read(folder)
    if state is None:
        return 0, []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"], state["history"]


def next_iteration(folder: Folder) -> int:
    """The iteration that an earlier start would go on with; 0 if there was none."""
    state = _read(folder)
    return state["iteration"] if state else 0


def _read(folder: Folder) -> dict | None:
    """The checkpoint; None if there is none, or if it is damaged: then what it held is learned again."""
    import torch

    if not folder.exists(CHECKPOINT_FILE):
        return None
    data = folder.read(CHECKPOINT_FILE)
    try:
        content = unsealed(data, f"{folder.url}/{CHECKPOINT_FILE}")
    except DamagedFile as error:
        print(f"{error}; it is left out, and learning begins anew", file=sys.stderr, flush=True)
        return None
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
