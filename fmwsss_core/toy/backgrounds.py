"""The textured surroundings of the toy world: sky, ground and what stands between them, with exact regions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

BACKGROUNDS = ("sky", "cloud", "mountain", "forest", "wall", "water", "rails", "road", "grass", "sand", "snow", "reef")
GROUNDS = ("water", "rails", "road", "grass", "sand", "snow")

Picture = Float[np.ndarray, "height width 3"]


class Backdrop(NamedTuple):
    """A scene without objects: colours 0..255, region (1-based index into BACKGROUNDS) and where objects stand."""

    colour: Float[np.ndarray, "height width 3"]
    region: UInt8[np.ndarray, "height width"]
    horizon_px: int  # objects on the ground have their feet below this row; 0 under water, height in the open sky


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Float[np.ndarray, "height width"]:
    """Noise of about unit deviation whose blobs are about `width / cells` pixels wide.

    Args:
        rng: where it comes from.
        height: in pixels.
        width: in pixels.
        cells: blobs across the width.

    Returns:
        Values around 0.
    """
    coarse = rng.standard_normal((max(2, cells * height // width), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _paint(colour: tuple[float, float, float], shade: np.ndarray) -> np.ndarray:
    return shade[..., None] * np.asarray(colour, np.float32)


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int], amount: int = 14) -> tuple[float, float, float]:
    r, g, b = (float(np.clip(value + rng.integers(-amount, amount + 1), 0, 255)) for value in colour)
    return r, g, b


def _sky(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    high = np.array(_jitter(rng, ((70, 140, 220), (110, 170, 230), (60, 110, 190))[rng.integers(3)]), np.float32)
    low = np.array(_jitter(rng, ((190, 220, 240), (240, 215, 185), (170, 210, 240))[rng.integers(3)]), np.float32)
    t = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    return (high * (1 - t) + low * t) * (1 + 0.02 * smooth_noise(rng, h, w, 6))[..., None]


def _depth_waves(h: int, waves: float) -> np.ndarray:
    """A phase per row that runs faster near the horizon, as on a plane seen at a slant."""
    return (2 * np.pi * waves * np.log1p(4 * np.linspace(0, 1, h, dtype=np.float32)))[:, None]


def _water(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    bend = 1.1 * smooth_noise(rng, h, w, 7)
    crest = np.sin(_depth_waves(h, rng.uniform(4, 7)) + bend + 0.1 * np.arange(w, dtype=np.float32)[None])
    return _paint(_jitter(rng, (42, 105, 165)), 1 + 0.16 * crest + 0.35 * np.clip(crest - 0.75, 0, None) * 2)


def _rails(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    picture = _paint(_jitter(rng, (128, 116, 104)), 1 + 0.13 * rng.standard_normal((h, w), np.float32))
    pitch, lean = int(rng.integers(9, 14)), rng.uniform(-0.4, 0.4)
    rows = np.arange(h)[:, None]
    sleepers = ((np.arange(w)[None] + lean * rows).astype(int) % pitch) < pitch // 2 - 1
    top, bottom = int(h * 0.25), int(h * 0.8)
    sleepers = sleepers & (rows >= top) & (rows < bottom)
    picture = np.where(sleepers[..., None], np.array((88, 60, 42), np.float32), picture)
    for y in (int(h * 0.35), int(h * 0.68)):
        picture[y : y + 2] = (198, 200, 206)
        picture[y + 2 : y + 3] = (80, 78, 80)
    return picture


def _road(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    picture = _paint(_jitter(rng, (88, 88, 94), 10), 1 + 0.07 * rng.standard_normal((h, w), np.float32))
    picture[: max(2, h // 14)] = _jitter(rng, (178, 172, 160))
    dash, start = int(rng.integers(12, 20)), int(rng.integers(20))
    middle, thick = int(h * rng.uniform(0.5, 0.65)), max(2, h // 16)
    marks = ((np.arange(w) + start) % (2 * dash)) < dash
    picture[middle : middle + thick, marks] = (236, 232, 214)
    return picture


def _grass(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    blades = np.repeat(rng.standard_normal((-(-h // 4), w), np.float32), 4, axis=0)[:h]
    picture = _paint(_jitter(rng, (88, 150, 58)), 1 + 0.13 * blades + 0.07 * smooth_noise(rng, h, w, 6))
    flowers = rng.random((h, w)) < rng.choice((0.0, 0.006, 0.012))
    picture[flowers] = _jitter(rng, (245, 225, 120))
    return picture


def _sand(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    ripple = np.sin(_depth_waves(h, rng.uniform(3, 5)) + 1.6 * smooth_noise(rng, h, w, 5))
    grain = rng.standard_normal((h, w), np.float32)
    return _paint(_jitter(rng, (222, 188, 126)), 1 + 0.06 * ripple + 0.04 * grain)


def _snow(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    drift = smooth_noise(rng, h, w, 5)
    grain = 0.015 * rng.standard_normal((h, w), np.float32)
    picture = _paint(_jitter(rng, (214, 226, 240), 8), 1 + 0.05 * drift + grain)
    picture[rng.random((h, w)) < 0.012] = 255
    return picture


def _wall(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    rows, columns = np.arange(h)[:, None], np.arange(w)[None]
    course, length = 8, 18
    number = rows // course
    along = columns + (number % 2) * (length // 2)
    tone = rng.uniform(0.82, 1.14, (h // course + 1, w // length + 2)).astype(np.float32)[number, along // length]
    picture = _paint(_jitter(rng, ((176, 92, 70), (190, 150, 110), (150, 110, 100))[rng.integers(3)]), tone)
    mortar = (rows % course == 0) | (along % length == 0)
    return np.where(mortar[..., None], np.array((214, 206, 192), np.float32), picture)


def _reef(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    t = np.linspace(0, 1, h, dtype=np.float32)[:, None]
    beams = np.sin(np.arange(w, dtype=np.float32)[None] * 0.16 + t * 5 + rng.uniform(0, 6)) * (1 - t)
    base = _paint(_jitter(rng, (28, 140, 160)), 1.1 - 0.5 * t + 0.1 * beams)
    canvas = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(9, 15))):
        x, height = rng.uniform(0, w), h * rng.uniform(0.1, 0.3)
        corals = ((215, 95, 120), (230, 140, 80), (150, 90, 170), (70, 150, 90))
        colour = tuple(map(int, _jitter(rng, corals[rng.integers(4)])))
        for lean in (-0.45, 0.0, 0.45):
            draw.line((x, h, x + lean * height, h - height * rng.uniform(0.6, 1)), fill=colour, width=4)
    for _ in range(int(rng.integers(5, 12))):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h * 0.8), rng.uniform(1, 3)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(190, 235, 240))
    return np.asarray(canvas, np.float32)


def _clouds(rng: np.random.Generator, w: int, depth: float) -> Image.Image:
    mask = Image.new("L", (w, max(1, int(depth))))
    draw = ImageDraw.Draw(mask)
    for _ in range(int(rng.integers(2, 5))):
        x, y, size = rng.uniform(0, w), rng.uniform(0.1, 0.75) * depth, rng.uniform(8, 15)
        for k in range(5):
            cx, r = x + (k - 2) * size * 0.8, size * (1.0 - 0.22 * abs(k - 2))
            draw.ellipse((cx - r, y - r * 0.75, cx + r, y + r * 0.55), fill=255)
    return mask


def _skyline(rng: np.random.Generator, h: int, w: int, peaks: bool) -> Image.Image:
    """What stands on the horizon, `h` rows high: mountains (wide triangles) or a forest (many narrow ones)."""
    mask = Image.new("L", (w, h))
    draw = ImageDraw.Draw(mask)
    for _ in range(4 if peaks else 26):
        x, top = rng.uniform(0, w), h * rng.uniform(0.0, 0.5)
        half = (h - top) * rng.uniform(0.9, 1.5) if peaks else rng.uniform(5, 9)
        draw.polygon([(x, top), (x - half, h), (x + half, h)], fill=255)
    if not peaks:
        draw.rectangle((0, int(h * 0.55), w, h), fill=255)
    return mask


_TEXTURES = {"water": _water, "rails": _rails, "road": _road, "grass": _grass, "sand": _sand, "snow": _snow}


def _put(colour: np.ndarray, region: np.ndarray, top: int, mask: np.ndarray, texture: np.ndarray, name: str) -> None:
    rows = slice(top, top + mask.shape[0])
    colour[rows] = np.where(mask[..., None], texture, colour[rows])
    region[rows][mask] = 1 + BACKGROUNDS.index(name)


def draw_backdrop(rng: np.random.Generator, height: int, width: int, kind: str) -> Backdrop:
    """Draw the surroundings called `kind`: "sky", "reef" or one of GROUNDS (which has something above its horizon).

    Args:
        rng: where it comes from.
        height: in pixels.
        width: in pixels.
        kind: of the surroundings.

    Returns:
        Colours, and which surrounding each pixel shows.
    """
    colour = np.zeros((height, width, 3), np.float32)
    region = np.zeros((height, width), np.uint8)
    full = np.ones((height, width), bool)
    if kind == "reef":
        _put(colour, region, 0, full, _reef(rng, height, width), "reef")
        return Backdrop(colour, region, 0)
    ground = kind if kind in GROUNDS else GROUNDS[int(rng.integers(len(GROUNDS)))]
    horizon = int(height * (rng.uniform(0.35, 0.6) if kind in GROUNDS else rng.uniform(0.86, 0.95)))
    if kind == "sky" and rng.random() < 0.5:
        horizon = height
    if kind in GROUNDS and kind != "water" and rng.random() < 0.15:
        _put(colour, region, 0, full, _wall(rng, height, width), "wall")
    else:
        _put(colour, region, 0, full, _sky(rng, height, width), "sky")
        if rng.random() < 0.5:
            mask = np.asarray(_clouds(rng, width, horizon * 0.8)) > 0
            puff = _paint(
                _jitter(rng, (242, 244, 248), 6), 1 - 0.06 * np.abs(smooth_noise(rng, mask.shape[0], mask.shape[1], 10))
            )
            _put(colour, region, 0, mask, puff, "cloud")
        if kind in GROUNDS and rng.random() < 0.45:
            peaks = kind in ("snow", "sand", "water") or rng.random() < 0.4
            rise = int(horizon * rng.uniform(0.35, 0.65))
            mask = np.asarray(_skyline(rng, rise, width, peaks)) > 0
            if peaks:
                texture = _paint(_jitter(rng, (124, 116, 132)), 1 + 0.1 * smooth_noise(rng, rise, width, 16))
                texture[: rise // 3] = 235 + 10 * smooth_noise(rng, rise // 3, width, 10)[..., None]
            else:
                texture = _paint(_jitter(rng, (36, 84, 50)), 1 + 0.25 * smooth_noise(rng, rise, width, 40))
            _put(colour, region, horizon - rise, mask, texture, "mountain" if peaks else "forest")
    if horizon < height:
        _put(colour, region, horizon, full[horizon:], _TEXTURES[ground](rng, height - horizon, width), ground)
    return Backdrop(colour, region, horizon)
