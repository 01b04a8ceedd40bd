"""Images decoded in a process of their own: one that crashes its decoder costs that image, not its block.

Decoders are C libraries that read bytes from strangers. An exception is caught where it is raised; a crash takes the
whole process along, with every other image that it had in hand. So a worker keeps a small child process (numpy and
Pillow only) that decodes one image after the other, and starts another one if it dies.

The child is this module, run with `python -m`. A request is a line of JSON and the encoded bytes, an answer is JSON
(its length before it) and the pixels. Nothing of either is executed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import UInt8

from fmwsss.cluster.execution.machine_faults import MachineFault
from fmwsss.core.images import ImageError, ImageFacts, decode_image, decode_label_png
from fmwsss.core.instances import paint_instances

# A child may also be killed by the machine (out of memory); after three crashes the image is reported as the cause.
NUM_TRIES = 3
PATIENCE_S = 120.0
PIPE_BYTES = 1 << 20
HEAD_BYTES = 4  # of the length of an answer's JSON
READY = b"ready"  # what a child says first: one that can't start is no image's fault


class Decoder:
    """A child process that decodes; started when it is first needed, and again whenever it has died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def rgb(self, data: bytes, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
        """`fmwsss.core.images.decode_rgb` in the child.

        Args:
            data: the bytes of an image file.
            max_pixels: height times width that is still decoded.

        Returns:
            RGB pixels, upright.

        Raises:
            ImageError: it is no image that can be used, or it crashed the decoder, or took longer than PATIENCE_S.
        """
        answer, pixels = self._ask("rgb", data, max_pixels)
        return np.frombuffer(pixels, np.uint8).reshape(*answer["size"], 3)

    def size(self, data: bytes, max_pixels: int) -> tuple[int, int]:
        """Height and width in pixels, upright, of an image that was decoded and can be used; raises as `rgb`.

        Args:
            data: the bytes of an image file.
            max_pixels: height times width that is still decoded.

        Returns:
            Height and width in pixels.
        """
        answer, _ = self._ask("size", data, max_pixels)
        height_px, width_px = answer["size"]
        return height_px, width_px

    def look(self, data: bytes, max_pixels: int) -> tuple[int, int, ImageFacts]:
        """`size`, and what the file says beside the pixels; raises as `rgb`.

        Args:
            data: the bytes of an image file.
            max_pixels: height times width that is still decoded.

        Returns:
            Height and width in pixels, and the facts of the file.
        """
        answer, _ = self._ask("size", data, max_pixels)
        height_px, width_px = answer["size"]
        return height_px, width_px, ImageFacts(answer["orientation"], answer["bits"])

    def instances(self, annotations: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
        """`fmwsss.core.instances.paint_instances` in the child; raises as `rgb`.

        Args:
            annotations: JSON, what `paint_instances` takes.
            size: height and width in pixels.

        Returns:
            Class indices; 255 is ignored.
        """
        answer, pixels = self._ask("instances", annotations, 0, size)
        return np.frombuffer(pixels, np.uint8).reshape(answer["size"])

    def labels(self, data: bytes) -> UInt8[np.ndarray, "height width"]:
        """`fmwsss.core.images.decode_label_png` in the child; raises as `rgb`."""
        answer, pixels = self._ask("labels", data, 0)
        return np.frombuffer(pixels, np.uint8).reshape(answer["size"])

    def close(self) -> None:
        """Ends the child; it also ends by itself when this process is gone."""
        child, self._child = self._child, None
        if child:
            child.kill()
            child.wait()
            for pipe in filter(None, (child.stdin, child.stdout)):
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(
        self,
        kind: Literal["rgb", "size", "labels", "instances"],
        data: bytes,
        max_pixels: int,
        size: tuple[int, int] | None = None,
    ) -> tuple[dict[str, Any], bytearray]:
        told = {"kind": kind, "max_pixels": max_pixels, "num_bytes": len(data), "size": size}
        request = json.dumps(told).encode() + b"\n"
        with self._lock:
            for _ in range(NUM_TRIES):
                self._child = self._child or _start_child()
                try:
                    answer, pixels = _exchange(self._child, request, data)
                    break
                except (EOFError, BrokenPipeError):
                    reason = f"crashes the process that decodes it ({_end_of(self._child)})"
                    self.close()
                except TimeoutError:
                    self.close()
                    raise ImageError(f"the image takes longer than {PATIENCE_S:g} s to decode") from None
            else:
                raise ImageError(f"the image {reason}")
        if "error" in answer:
            raise ImageError(answer["error"])
        return answer, pixels


@functools.cache
def decoder() -> Decoder:
    """The decoder of this process."""
    own = Decoder()
    atexit.register(own.close)
    return own


def _start_child() -> subprocess.Popen[bytes]:
    """A child that has said that it is there.

    Raises:
        MachineFault: it did not start; with the end of what it wrote to stderr.
    """
    # Its own group: an interrupt from the terminal is for the driver.
    with tempfile.TemporaryFile() as told:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "fmwsss.cluster.execution.subprocess_decoder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,
            )
        except OSError as error:
            raise MachineFault(f"the process that decodes images does not start: {error}") from None
        assert child.stdout
        try:
            _receive(child.stdout, len(READY), time.monotonic() + PATIENCE_S)
        except (EOFError, TimeoutError):
            child.kill()
            end = _end_of(child)
            told.seek(0)
            words = " ".join(told.read().decode(errors="replace").split())[-500:]
            raise MachineFault(f"the process that decodes images does not start ({end}): {words}") from None
    for pipe in filter(None, (child.stdin, child.stdout)):
        # An image in a few pieces instead of many; where a kernel doesn't, it only takes longer.
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return child


def _exchange(child: subprocess.Popen[bytes], request: bytes, data: bytes) -> tuple[dict[str, Any], bytearray]:
    assert child.stdin
    assert child.stdout
    child.stdin.write(request + data)
    child.stdin.flush()
    deadline = time.monotonic() + PATIENCE_S
    num_bytes = int.from_bytes(_receive(child.stdout, HEAD_BYTES, deadline), "little")
    answer = json.loads(_receive(child.stdout, num_bytes, deadline))
    return answer, _receive(child.stdout, answer["num_bytes"], deadline)


def _receive(pipe: IO[bytes], num_bytes: int, deadline: float) -> bytearray:
    """Exactly this many bytes; the pipe itself is read, so that nothing waits in a buffer that `select` can't see."""
    received, handle = bytearray(num_bytes), pipe.fileno()
    view, position = memoryview(received), 0
    while position < num_bytes:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        count = os.readv(handle, [view[position:]])
        if not count:
            raise EOFError
        position += count
    return received


def _end_of(child: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    code = child.returncode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The child's life: answers until its input ends."""
    answers.write(READY)
    answers.flush()
    # What C libraries print about an image is of no use to anybody, and nobody reads it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["num_bytes"])
        answer, pixels = _answer(request, data)
        head = json.dumps({**answer, "num_bytes": len(pixels)}).encode()
        answers.write(len(head).to_bytes(HEAD_BYTES, "little") + head)
        answers.write(pixels)
        answers.flush()


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
    try:
        if request["kind"] == "labels":
            labels = decode_label_png(data)
            return {"size": labels.shape}, labels.reshape(-1).data
        if request["kind"] == "instances":
            labels = paint_instances(json.loads(data), *request["size"])
            return {"size": labels.shape}, labels.reshape(-1).data
        pixels, facts = decode_image(data, request["max_pixels"])
        answer = {"size": pixels.shape[:2], **asdict(facts)}
        return answer, pixels.reshape(-1).data if request["kind"] == "rgb" else b""
    except ImageError as error:
        return {"error": str(error)}, b""
    except Exception as error:
        # Whatever it is, it comes from these bytes, and the next image is none the worse for it.
        return {"error": f"the image can't be decoded: {type(error).__name__}: {' '.join(str(error).split())}"}, b""


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
