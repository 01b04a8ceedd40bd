"""A checkpoint that changed at rest is not gone on with, and one of an earlier release is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.superpixels.shared_cache import SharedSuperpixels, _file
from fmwsss.jobs.training import checkpoint


def learned() -> tuple[torch.nn.Linear, torch.optim.SGD]:
    model = torch.nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_flipped_bit_of_a_checkpoint_is_seen(
    tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(str(tmp_path))
    checkpoint.save(folder, *learned(), 5, [])
    assert checkpoint.next_iteration(folder) == checkpoint.restore(folder, *learned())[0] == 5
    path = tmp_path / checkpoint.CHECKPOINT_FILE
    data = bytearray(path.read_bytes())
    data[80 + int(share * (len(data) - 80))] ^= 4
    path.write_bytes(data)
    assert checkpoint.next_iteration(folder) == checkpoint.restore(folder, *learned())[0] == 0
    assert "is damaged" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_release_is_gone_on_with(tmp_path: Path) -> None:
    model, optimizer = learned()
    buffer = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 7, "history": []}
    torch.save(state, buffer)
    (tmp_path / checkpoint.CHECKPOINT_FILE).write_bytes(buffer.getvalue())
    assert checkpoint.restore(Folder(str(tmp_path)), *learned()) == (7, [])


def test_a_shared_superpixel_object_of_zero_bytes_is_none(tmp_path: Path) -> None:
    shared = SharedSuperpixels(Folder(str(tmp_path)))
    shared.folder.write(_file("ab" * 32), b"")
    assert shared.known(["ab" * 32]) == set()
