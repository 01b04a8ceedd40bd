"""TensorBoard files in a run folder, local or on an object store, and the same figures as Ray's metrics."""

from __future__ import annotations

import io
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from ray.util.metrics import Gauge
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from cluster.storage import Folder


class EventLog:
    """One TensorBoard file, which is kept on this machine and copied whole into the folder every so often.

    Args:
        folder: where it goes; TensorBoard reads all files of a folder as one log.
        first: the step it begins with; a start that goes on from a checkpoint has a file of its own.
        save_every_s: seconds between two copies.
    """

    def __init__(self, folder: Folder, first: int, save_every_s: float) -> None:
        self.folder, self.save_every_s = folder, save_every_s
        self.name = f"events.out.tfevents.{first:08d}"
        self._place = tempfile.TemporaryDirectory()
        self._path = Path(self._place.name) / "events"
        self._writer = RecordWriter(str(self._path))
        self._saved_s = time.monotonic()
        self._gauges: dict[str, Gauge] = {}
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step, also as gauges `fmwsss_<name>` of Ray's metrics."""
        rows = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=rows)))
        for name, value in values.items():
            gauge = self._gauges.setdefault(name, Gauge(f"fmwsss_{name}", "prompt learning", ("stage",)))
            gauge.set(float(value), {"stage": self.folder.url.rpartition("/")[2]})
        if time.monotonic() - self._saved_s > self.save_every_s:
            self.save()

    def picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """One picture."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        picture = Summary.Image(
            height=pixels.shape[0], width=pixels.shape[1], colorspace=3, encoded_image_string=buffer.getvalue()
        )
        rows = [Summary.Value(tag=name, image=picture)]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=rows)))

    def save(self) -> None:
        """Copies everything until now into the folder."""
        self._saved_s = time.monotonic()
        self._writer.flush()
        self.folder.write(self.name, self._path.read_bytes())

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())


def peak_memory_bytes(device_type: str) -> int:
    """The most memory this process has held: of the GPU where it computes on one, else of the machine."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
