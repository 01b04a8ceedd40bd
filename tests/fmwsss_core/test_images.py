"""Images as a person sees them, limits before decoding, and one clear sentence for every file that can't be used."""

from __future__ import annotations

import contextlib
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageFile

from fmwsss.core.images import MIN_SIDE_PX, ImageError, decode_label_png, decode_rgb, encode_label_png
from fmwsss.core.labels import PALETTE
from tests.support.image_files import encoded, png

MAX_PIXELS = 1_000_000
JARGON = (
    "PIL",
    "Pillow",
    "cannot identify",
    "BytesIO",
    "not processed",
    "decompression",
    "Errno",
    "broken data stream",
)


def picture(height: int = 12, width: int = 10, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
        (9, lambda x: x),
    ],
)
def test_images_are_upright(orientation: int, upright) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture()
    data = encoded(Image.fromarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_rgb(data, MAX_PIXELS), upright(stored))


def test_grey_becomes_three_equal_channels() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decode_rgb(png(grey), MAX_PIXELS), np.stack([grey] * 3, axis=-1))


def test_one_bit_is_black_and_white() -> None:
    bits = picture()[..., 0] > 127
    decoded = decode_rgb(encoded(Image.fromarray(bits), "PNG"), MAX_PIXELS)
    np.testing.assert_array_equal(decoded[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    wide = np.linspace(0, 65535, 120).round().astype(np.uint16).reshape(10, 12)
    decoded = decode_rgb(encoded(Image.fromarray(wide), kind), MAX_PIXELS)
    np.testing.assert_array_equal(decoded[..., 0], np.round(wide / 257))
    assert (decoded.min(), decoded.max()) == (0, 255)


def test_cmyk_is_converted() -> None:
    cyan = np.zeros((16, 16, 4), dtype=np.uint8)
    cyan[..., 0] = 255
    decoded = decode_rgb(encoded(Image.fromarray(cyan, "CMYK"), "JPEG", quality=100), MAX_PIXELS)
    np.testing.assert_allclose(decoded.reshape(-1, 3).mean(0), (0, 255, 255), atol=3)


def test_what_is_transparent_is_white() -> None:
    pixels = picture(channels=4)
    pixels[..., 3] = np.where(np.arange(10) < 5, 0, 255)
    decoded = decode_rgb(png(pixels), MAX_PIXELS)
    assert (decoded[:, :5] == 255).all()
    np.testing.assert_array_equal(decoded[:, 5:], pixels[:, 5:, :3])


def test_a_palette_is_looked_up_and_its_transparent_colour_is_white() -> None:
    indices = np.arange(96, dtype=np.uint8).reshape(8, 12) % 4
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    decoded = decode_rgb(encoded(image, "PNG", transparency=1), MAX_PIXELS)
    expected = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90], [1, 2, 3]])[indices]
    np.testing.assert_array_equal(decoded, expected)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_rgb(data, MAX_PIXELS) == (255, 0, 0)).all()


def test_the_result_may_be_written_to() -> None:
    decode_rgb(png(picture()), MAX_PIXELS)[:] = 0


def sentence(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageError) as caught:
        decode_rgb(data, max_pixels)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert not any(word in text for word in JARGON)
    return text


def test_files_that_are_no_images_say_so() -> None:
    assert "no image" in sentence(b"<html><body>404 Not Found</body></html>")
    assert "empty" in sentence(b"")
    assert "no image" in sentence(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_says_so(kind: str) -> None:
    data = encoded(Image.fromarray(picture(200, 200)), kind)
    assert "cut off" in sentence(data[: len(data) // 2])


def test_damaged_data_says_so() -> None:
    data = bytearray(png(picture(50, 50)))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\0" * 20
    assert "damaged" in sentence(bytes(data))


def test_32_bit_pixels_are_refused() -> None:
    assert "floating-point" in sentence(encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"))
    assert "32 bits" in sentence(encoded(Image.fromarray(np.full((9, 9), 70000, np.int32)), "TIFF"))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_001), (1001, 1000)])
def test_large_images_are_refused_before_they_are_decoded(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it is decoded"))
        assert str(MAX_PIXELS) in sentence(png_header(width, height))
    # Within the limit this file would have been decoded, and is empty.
    if width * height < 10**8:
        assert "cut off" in sentence(png_header(width, height), max_pixels=10**9)


def test_a_limit_above_pillows_own_names_pillows() -> None:
    assert str(2 * (Image.MAX_IMAGE_PIXELS or 0)) in sentence(png_header(20_000, 20_000), max_pixels=10**9)


def test_small_images_are_refused() -> None:
    assert decode_rgb(png(picture(MIN_SIDE_PX, MIN_SIDE_PX)), MAX_PIXELS).shape == (MIN_SIDE_PX, MIN_SIDE_PX, 3)
    assert f"at least {MIN_SIDE_PX}" in sentence(png(picture(1, 1)))
    assert f"at least {MIN_SIDE_PX}" in sentence(png(picture(300, MIN_SIDE_PX - 1)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]), st.data())
def test_no_cut_and_no_flipped_byte_gives_another_exception(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(Image.fromarray(picture(40, 30)), kind))
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[position] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for decode in (lambda: decode_rgb(cut, MAX_PIXELS), lambda: decode_label_png(cut)):
        with contextlib.suppress(ImageError):
            assert decode().dtype == np.uint8


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_labels_come_back(labels: np.ndarray) -> None:
    data = encode_label_png(labels)
    np.testing.assert_array_equal(decode_label_png(data), labels)
    np.testing.assert_array_equal(np.array(Image.open(BytesIO(data)).convert("RGB")), PALETTE[labels])
    assert encode_label_png(labels) == data


def test_the_palette_is_that_of_voc() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for index, colour in {**known, 255: (224, 224, 192)}.items():
        assert tuple(PALETTE[index]) == colour
    assert len({tuple(colour) for colour in PALETTE}) == 256


def test_grey_labels_are_read_and_pictures_are_refused() -> None:
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(decode_label_png(png(labels)), labels)
    narrow = bytearray(png(labels))
    narrow[24] = 4
    for data in (png(picture()), encoded(Image.fromarray(labels), "JPEG"), bytes(narrow)):
        with pytest.raises(ImageError):
            decode_label_png(data)


def test_real_masks_and_photographs(real: Path) -> None:
    for path in sorted((real / "voc" / "SegmentationClass").glob("*.png"))[:5]:
        mask = Image.open(path)
        labels = decode_label_png(path.read_bytes())
        np.testing.assert_array_equal(labels, np.asarray(mask))
        np.testing.assert_array_equal(PALETTE[labels], np.asarray(mask.convert("RGB")))
        photograph = (real / "voc" / "JPEGImages" / f"{path.stem}.jpg").read_bytes()
        assert decode_rgb(photograph, MAX_PIXELS).shape == (*labels.shape, 3)


def test_a_jpeg_without_its_end_is_whole_if_no_pixel_is_missing() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    for options in ({}, {"progressive": True}, {"subsampling": 2, "restart_marker_blocks": 4}):
        data = encoded(Image.fromarray(pixels), "JPEG", **options)
        whole = decode_rgb(data, 10**6)
        for end in (data[:-2], data[:-1], data[:-2] + b"\0" * 100, data + b"junk"):
            np.testing.assert_array_equal(decode_rgb(end, 10**6), whole)
        half = len(data) // 2
        for broken in (data[:half], data[:half] + b"\0" * half, data[: int(len(data) * 0.97)]):
            with pytest.raises(ImageError, match="cut off"):
                decode_rgb(broken, 10**6)


def test_grey_of_12_bits_is_scaled_by_what_the_file_says_or_refused() -> None:
    values = np.linspace(0, 4095, 2400).reshape(40, 60).astype(np.uint16)
    with pytest.raises(ImageError, match="none is above 4095"):
        decode_rgb(encoded(Image.fromarray(values), "TIFF"), 10**6)
    told = encoded(Image.fromarray(values), "TIFF", tiffinfo={281: 4095})
    np.testing.assert_array_equal(decode_rgb(told, 10**6)[..., 0], np.round(values.astype(float) * 255 / 4095))
    with pytest.raises(ImageError, match="32 bits"):
        decode_rgb(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"), 10**6)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read(kind: str) -> None:
    pixels = np.full((40, 60, 3), 200, np.uint8)
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    assert abs(int(decode_rgb(encoded(Image.fromarray(pixels), kind), 10**6).mean()) - 200) < 3
