"""Bytes to RGB pixels and back to label PNGs, with limits that are checked before anything is decoded."""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from fmwsss.core.errors import InputError
from fmwsss.core.labels import PALETTE

MIN_SIDE_PX = 8
# Named, so that a file cannot choose a decoder that nobody expects (EPS starts a program).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# For images whose size was checked when they were ingested.
UNLIMITED = 2**62


MAX_SAMPLE_VALUE, BITS_PER_SAMPLE = 281, 258  # tags of TIFF
MAX_12_BIT = 4095
# Behind a JPEG that ends too early: what is missing would take its pixels from here.
_FILLER = bytes(range(1, 251)) * 40


class ImageError(InputError):
    """An image that can't be used; one sentence that says why."""


@dataclass(frozen=True)
class ImageFacts:
    """What a file says of an image, beside its pixels.

    Attributes:
        orientation: how EXIF or XMP turn what is stored, 1 to 8; 1 is as it is stored.
        bits: of a channel, as they are stored.
    """

    orientation: int
    bits: int


def decode_rgb(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image as a person sees it: upright by its EXIF orientation, 8 bits, three channels.

    Grey becomes three equal channels, 16-bit grey is divided by 257 (or less, where the file tells its largest value),
    CMYK and palettes are converted, what is transparent is laid over white, and the first frame is taken.

    Args:
        data: an encoded image of one of FORMATS.
        max_pixels: more are refused, before they are decoded.

    Raises:
        ImageError: no image, too large, too small (a side below MIN_SIDE_PX), truncated or damaged.
    """
    return decode_image(data, max_pixels)[0]


def decode_image(data: bytes, max_pixels: int) -> tuple[UInt8[np.ndarray, "height width 3"], ImageFacts]:
    """`decode_rgb`, and what the file says beside the pixels; raises as it.

    Args:
        data: the bytes of an image file.
        max_pixels: height times width that is still decoded.

    Returns:
        RGB pixels, upright, and the facts of the file.

    Raises:
        ImageError: it can't be decoded, is too large, or has floating-point pixels.
    """
    image = _open(data, max_pixels, MIN_SIDE_PX)
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    facts = ImageFacts(orientation if orientation in UPRIGHT else 1, _bits_of(image, data))
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image, _max_value(image, data))
    if image.mode == "F":
        raise ImageError("its pixels are floating-point numbers; give 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return np.array(image), facts


def encode_label_png(labels: UInt8[np.ndarray, "height width"]) -> bytes:
    """A map of class indices as a PNG with the palette of PASCAL VOC, which every viewer shows in colours."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE.tobytes())
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_grey_png(values: Float32[np.ndarray, "height width"]) -> bytes:
    """Numbers from 0 to 1 as a grey PNG, 255 for 1."""
    buffer = BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_label_png(data: bytes) -> UInt8[np.ndarray, "height width"]:
    """The class indices of a palette PNG (the palette itself does not matter) or an 8-bit grey PNG.

    Raises:
        ImageError: no PNG, damaged, or its pixels are not class indices.
    """
    image = _open(data, max_pixels=UNLIMITED, min_side_px=1)
    # Pillow spreads grey of 2 or 4 bits over 0..255, so the indices would be lost.
    is_narrow_grey = data[24:26] in (b"\x02\x00", b"\x04\x00")
    if image.format != "PNG" or image.mode not in ("P", "L") or is_narrow_grey:
        raise ImageError("a label image is a PNG of class indices: with a palette, or 8-bit grey")
    return np.array(image)


def _open(data: bytes, max_pixels: int, min_side_px: int) -> Image.Image:
    """A decoded image within the limits."""
    try:
        with warnings.catch_warnings():
            # Of sizes that the limit below decides about, and of every format that this file is not.
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=_known_formats())
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"mif"):
            raise ImageError(
                "it is HEIC, which Pillow reads with a package beside it: pip install pillow-heif"
            ) from None
        known = ", ".join(FORMATS)
        raise ImageError(f"the file is no image that can be read ({known})" if data else "the file is empty") from None
    except Image.DecompressionBombError:
        raise ImageError(f"the image has more than the {_most(max_pixels)} pixels that are allowed") from None
    except MemoryError:
        raise
    except Exception as error:
        raise _damage(error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} x {height} pixels, more than the {max_pixels} that are allowed")
    if min(width, height) < min_side_px:
        raise ImageError(f"the image has {width} x {height} pixels; both sides need at least {min_side_px}")
    try:
        if image.format in ("JPEG", "MPO") and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:
            image = _without_end(data)
        image.load()
        image.getexif()
    except MemoryError:
        raise
    except ImageError:
        raise
    except Exception as error:
        raise _damage(error) from error
    return image


def _without_end(data: bytes) -> Image.Image:
    """A JPEG whose last bytes are missing, or zeros as of a download that broke off: whole if no pixel comes from them.

    The decoder fills what is missing with grey and says nothing. So it decodes twice, with other bytes in their place.

    Raises:
        ImageError: the pictures differ.
    """
    body = data.rstrip(b"\0")
    image, other = (Image.open(BytesIO(body + tail + b"\xff\xd9"), formats=("JPEG",)) for tail in (b"", _FILLER))
    image.load()
    other.load()
    if image.tobytes() != other.tobytes():
        raise ImageError("the image is cut off: the file ends too early")
    return image


@functools.cache
def _known_formats() -> list[str]:
    """Those of FORMATS that Pillow reads here; HEIC by a package of its own."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

        register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _bits_of(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        bits = _tag(image, BITS_PER_SAMPLE)
        return bits if bits is not None else 1
    return {"1": 1, "I": 16, "F": 32}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)


def _max_value(image: Image.Image, data: bytes) -> int | None:
    """The largest value that pixels can have, where the file says so."""
    if image.format == "TIFF":
        return _tag(image, MAX_SAMPLE_VALUE)
    if image.format == "PNG" and (begin := data.find(b"sBIT", 0, 4096)) > 0:
        return 2 ** data[begin + 4] - 1
    return 0xFFFF if image.format == "PPM" else None  # Pillow has scaled it


def _tag(image: Image.Image, number: int) -> int | None:
    value = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) and value > 0 else None


def _damage(error: Exception) -> ImageError:
    """What to say about whatever Pillow's plugins raise: OSError, SyntaxError, ValueError, struct.error and more."""
    is_cut_off = "truncated" in str(error).lower() or isinstance(error, EOFError)
    return ImageError("the image is cut off: the file ends too early" if is_cut_off else "the image is damaged")


def _most(max_pixels: int) -> int:
    # Pillow refuses on its own what is more than twice its limit, which stays in force.
    return min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))


def _from_16_bit(image: Image.Image, max_value: int | None) -> Image.Image:
    """Grey of more than 8 bits, scaled by what the file says that its largest value is."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF or (image.mode == "I" and image.format == "TIFF"):
        raise ImageError("its pixels have 32 bits; give 8 or 16 bits a channel")
    if max_value is None and 0 < values.max() <= MAX_12_BIT:
        raise ImageError(
            f"its pixels have 16 bits and none is above {values.max()}, as of a camera with 12: it would be "
            "black. Store it with 8 bits, or say the largest value in the tag MaxSampleValue"
        )
    largest = max(max_value or 0xFFFF, int(values.max()))
    return Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
