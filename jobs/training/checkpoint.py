"""What a stage that learns leaves behind as it goes: model, optimizer, the next iteration and the history until there.

No state of a random generator is kept: what is drawn depends on the run's seed, the iteration and the image alone.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from fmwsss.cluster.storage.folder import Folder

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
    """Writes the checkpoint of a stage over the one before."""
    import torch

    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": iteration,
        "history": history,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(CHECKPOINT_FILE, buffer.getvalue())


def restore(
    folder: Folder, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Goes on where an earlier start stopped: the iteration to begin with, and the history until there."""
    if not folder.exists(CHECKPOINT_FILE):
        return 0, []
    state = _read(folder)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"], state["history"]


def next_iteration(folder: Folder) -> int:
    """The iteration that an earlier start would go on with; 0 if there was none."""
    return _read(folder)["iteration"] if folder.exists(CHECKPOINT_FILE) else 0


def _read(folder: Folder) -> dict:
    import torch

    return torch.load(io.BytesIO(folder.read(CHECKPOINT_FILE)), weights_only=True, map_location="cpu")
