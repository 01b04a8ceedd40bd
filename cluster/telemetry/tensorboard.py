"""TensorBoard files in a run folder, local or on an object store, and the same figures as Ray's metrics."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from fmwsss.cluster.storage.folder import Folder

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

TOLD_WITHIN_S = 30.0  # a driver that does not listen is not waited for
LOGS = "logs"  # the folder of a stage that they are in


class EventLog:
    """One TensorBoard file, which is kept on this machine and copied whole into the folder every so often.

    Args:
        folder: of the stage; TensorBoard reads all files of its `logs/` as one log.
        first: the step it begins with; a start that goes on from a checkpoint has a file of its own.
        save_every_s: seconds between two copies.
        tell: called with each step and its values, for trackers; a task of Ray that it returns is waited for at a save.
    """

    def __init__(
        self,
        folder: Folder,
        first: int,
        save_every_s: float,
        tell: Callable[[int, dict[str, float]], Any] = lambda step, values: None,
    ) -> None:
        self.folder, self.save_every_s, self.tell = folder, save_every_s, tell
        # A file's usual name has the machine's name in it.
        self.name = f"{LOGS}/events.out.tfevents.{first:08d}"
        self._place = tempfile.TemporaryDirectory()
        # Not `SummaryWriter`: its thread writes while `save` reads, and the copy would end within an event.
        self._writer = EventsWriter(f"{self._place.name}/events")
        self._saved_s = time.monotonic()
        self._gauges: dict[str, Gauge] = {}
        self._told: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step, also as gauges `fmwsss_<name>` of Ray's metrics.

        Args:
            step: iteration, from 0.
            values: by name.
        """
        for name, value in values.items():
            self._add(step, summary.scalar(name, float(value)))
            self._measure(name, float(value))
        self._told = self.tell(step, {name: float(value) for name, value in values.items()})
        if time.monotonic() - self._saved_s > self.save_every_s:
            self.save()

    def _add(self, step: int, of_step: Any) -> None:
        self._writer.write_event(Event(summary=of_step, step=step, wall_time=time.time()))

    def _measure(self, name: str, value: float) -> None:
        if "ray" not in sys.modules:  # a worker has it; a training step is measured without
            return
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(f"fmwsss_{name}", "of a stage that learns", ("stage",))
        self._gauges[name].set(value, {"stage": self.folder.url.rpartition("/")[2]})

    def picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """One picture.

        Args:
            step: iteration, from 0.
            name: of the picture.
            pixels: RGB.
        """
        self._add(step, summary.image(name, pixels, dataformats="HWC"))

    def save(self) -> None:
        """Copies everything until now into the folder."""
        self._saved_s = time.monotonic()
        self._writer.flush()
        (path,) = Path(self._place.name).iterdir()
        self.folder.write(self.name, path.read_bytes())
        if self._told is not None:  # a worker that ends now would take with it what it has not sent
            import ray

            ray.wait([self._told], timeout=TOLD_WITHIN_S)
            self._told = None


def peak_memory_bytes(device_type: str) -> int:
    """The most memory this process has held: of the GPU where it computes on one, else of the machine."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
