"""Images decoded in a process of their own: the same pixels, and a crash costs one image."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwsss.cluster.execution import subprocess_decoder as module
from fmwsss.cluster.execution.subprocess_decoder import NUM_TRIES, Decoder
from fmwsss.core.images import ImageError, decode_rgb, encode_label_png
from tests.fmwsss_core.test_images import png_header
from tests.support.image_files import CRASHING, crashing_decoder, encoded, png


@pytest.fixture
def own() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_same_pixels_as_here(own: Decoder) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for data in (png(noise()), encoded(Image.fromarray(noise(900, 700)), "JPEG", exif=turned)):
        np.testing.assert_array_equal(own.rgb(data, 10**6), decode_rgb(data, 10**6))
        assert own.size(data, 10**6) == decode_rgb(data, 10**6).shape[:2]
    labels = noise()[..., 0]
    np.testing.assert_array_equal(own.labels(encode_label_png(labels)), labels)


def test_what_is_wrong_is_said_in_the_same_words(own: Decoder) -> None:
    for data in (b"", b"text", png(noise())[:300], png_header(9000, 9000), png(noise(2, 2))):
        with pytest.raises(ImageError) as here:
            decode_rgb(data, 10**6)
        for call in (own.rgb, own.size):
            with pytest.raises(ImageError) as there:
                call(data, 10**6)
            assert str(there.value) == str(here.value)
    with pytest.raises(ImageError, match="label image"):
        own.labels(png(noise()))


def test_an_image_that_crashes_its_decoder_is_one_failure(
    own: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(crashing_decoder(tmp_path))
    assert own.size(png(noise()), 10**6) == (20, 30)
    with pytest.raises(ImageError, match=r"^the image crashes the process that decodes it \(signal 11\)$"):
        own.rgb(png(noise()) + CRASHING, 10**6)
    assert len(list(tmp_path.glob("crash-*"))) == NUM_TRIES
    assert own.size(png(noise()), 10**6) == (20, 30)


def test_a_child_that_is_killed_costs_no_image(own: Decoder) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(own.rgb(png(noise()), 10**6), noise())
        assert own._child
        os.kill(own._child.pid, signal.SIGKILL)


def test_a_decoder_that_hangs_is_ended(own: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    own.size(png(noise()), 10**6)
    assert own._child
    os.kill(own._child.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    with pytest.raises(ImageError, match=r"takes longer than 0\.5 s to decode"):
        own.size(png(noise()), 10**6)
    monkeypatch.undo()
    assert own.size(png(noise()), 10**6) == (20, 30)
