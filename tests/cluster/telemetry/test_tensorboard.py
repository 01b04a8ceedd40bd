"""A log in a run folder: each copy is whole, and holds every event until then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.telemetry.tensorboard import EventLog


def events(data: bytes) -> list[Event]:
    """The events of a file, each of which is: length (8 bytes), its checksum (4), event, its checksum (4)."""
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        assert len(data) >= 16 + length
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_every_copy_is_whole_and_has_each_event_until_then(tmp_path: Path) -> None:
    log = EventLog(Folder(str(tmp_path)), 7, 1e9)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for step in range(40):
        log.picture(step, "noise", noise)  # longer than a buffer of the file
        log.scalars(step, {"loss": step / 4})
        log.save()
        # The first event names the format.
        of_steps = events((tmp_path / "logs" / "events.out.tfevents.00000007").read_bytes())[1:]
        assert [event.step for event in of_steps] == [step for step in range(step + 1) for _ in range(2)]
        assert [event.summary.value[0].simple_value for event in of_steps[1::2]] == [k / 4 for k in range(step + 1)]
