"""The toy world: scenes drawn by program, with exact masks of wholes, parts and sub-parts.

The world has the trap that background prompts are there for: a boat is nearly always on water and a train on rails, so
image-level labels alone cannot tell the two apart, but some boats lie on sand and some water is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from fmwsss.core.toy.backgrounds import BACKGROUNDS, GROUNDS, draw_backdrop, smooth_noise
from fmwsss.core.toy.objects import OBJECTS, Shape
from fmwsss.core.vocabulary import Vocabulary

HOMES = {
    "boat": "water", "train": "rails", "car": "road", "bus": "road", "plane": "sky", "balloon": "sky",
    "cow": "grass", "sheep": "grass", "bird": "sky", "fish": "reef", "snowman": "snow", "cactus": "sand",
}  # fmt: skip
TOY = Vocabulary(name="toy", classes=tuple(OBJECTS), prompts=tuple(OBJECTS), backgrounds=BACKGROUNDS)

AWAY_FROM_HOME = 0.15  # the share of objects drawn where their class does not live
MIN_BACKGROUND_SHARE = 0.02  # a smaller region is not worth a word
_SCALE = 2  # objects are drawn at twice the size and averaged down, for smooth edges
_AREA_SHARES = {1: (0.17, 0.40), 2: (0.12, 0.24), 3: (0.10, 0.17)}  # of the scene, per object, by number of objects
_TILT_DEG = {"sky": 16.0, "reef": 16.0}
_GROUND_TILT_DEG = 5.0


@dataclass(frozen=True)
class Scene:
    """One picture of the toy world and everything that is true about it.

    Attributes:
        image: RGB.
        truth: class per pixel: 0 background, 1..12 in the order of `TOY.classes`.
        levels: which sub-part (row 0), part (row 1) and whole (row 2) a pixel belongs to, as numbers that are unique in
            the scene. Where there is no finer level the number of the coarser one is repeated; a background region has
            one number in all rows. The masks that a point lies in are `levels == levels[:, y, x]`.
        classes: the classes with a visible pixel, in vocabulary order.
        backgrounds: the background words that are true of the picture, in vocabulary order.
    """

    image: UInt8[np.ndarray, "height width 3"]
    truth: UInt8[np.ndarray, "height width"]
    levels: UInt8[np.ndarray, "3 height width"]
    classes: tuple[str, ...]
    backgrounds: tuple[str, ...]


@cache
def _unit_area(name: str) -> float:
    """Painted area of an object in its own frame, whose side is 2: what turns an area into a scale."""
    size = 128
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    for shape in OBJECTS[name](np.random.default_rng(0)):
        draw.polygon([((x + 1.4) * size / 2.8, (y + 1.4) * size / 2.8) for x, y in shape.points], fill=1)
    return float(np.asarray(canvas).mean()) * 2.8**2


def _choose(rng: np.random.Generator, away_from_home: float) -> tuple[str, list[str]]:
    """The kind of surroundings and the classes of the one to three objects in them."""
    names = TOY.classes
    first = names[int(rng.integers(len(names)))]
    kinds = (*GROUNDS, "sky", "reef")
    kind = HOMES[first] if rng.random() >= away_from_home else kinds[int(rng.integers(len(kinds)))]
    welcome = [name for name in names if HOMES[name] == kind or (HOMES[name] == "sky" and kind in GROUNDS)]
    chosen = [first]
    for _ in range(int(rng.choice(3, p=(0.45, 0.35, 0.2)))):
        others = list(names) if rng.random() < away_from_home else welcome
        chosen.append(others[int(rng.integers(len(others)))])
    return kind, chosen


def _frame(
    rng: np.random.Generator, name: str, kind: str, area_px: float, size: tuple[int, int], x: float, horizon: int
) -> tuple[list[Shape], np.ndarray, np.ndarray]:
    """The map from an object's frame to pixels: flip, aspect, tilt, size and place."""
    height, width = size
    shapes = OBJECTS[name](rng)
    points = np.concatenate([np.asarray(shape.points) for shape in shapes])
    tilt = np.deg2rad(rng.uniform(-1, 1) * _TILT_DEG.get(HOMES[name], _GROUND_TILT_DEG))
    aspect = rng.uniform(0.88, 1.14)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    matrix = turn @ np.diag([aspect * (-1 if rng.random() < 0.5 else 1), 1 / aspect])
    low, high = (points @ matrix.T).min(0), (points @ matrix.T).max(0)
    scale = min(np.sqrt(area_px / _unit_area(name)), 1.04 * width / (high - low)[0], 1.0 * height / (high - low)[1])
    low, high = low * scale, high * scale
    half_width = (high - low)[0] / 2
    x = float(np.clip(x, half_width * 0.92, width - half_width * 0.92)) if half_width * 1.84 < width else width / 2
    floats = kind in ("sky", "reef") or (HOMES[name] == "sky" and rng.random() < 0.85)
    if floats and kind in GROUNDS:
        top = rng.uniform(0, max(1.0, horizon - (high - low)[1] * 0.8))
        y = top - low[1]
    elif floats:
        y = rng.uniform(0, max(1.0, height - (high - low)[1])) - low[1]
    else:
        feet = rng.uniform(max(horizon + 6, height * 0.72), height * 0.97)
        y = max(feet - high[1], -low[1] - 0.05 * (high - low)[1])
    return shapes, matrix * scale, np.array([x - (low + high)[0] / 2, y])


def _draw_object(
    draws: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw],
    shapes: list[Shape],
    matrix: np.ndarray,
    origin: np.ndarray,
    first_leaf: int,
) -> list[str]:
    """Paint an object's colours and leaf numbers; returns the part / detail name of every leaf from `first_leaf` on."""
    colour_draw, leaf_draw = draws
    leaves: list[tuple[str, str]] = []
    for shape in shapes:
        key = (shape.part, shape.detail)
        if key not in leaves:
            leaves.append(key)
        corners = [tuple(p) for p in (np.asarray(shape.points) @ matrix.T + origin) * _SCALE]
        edge = tuple(int(value * 0.72) for value in shape.colour)
        colour_draw.polygon(corners, fill=shape.colour, outline=edge)
        leaf_draw.polygon(corners, fill=first_leaf + leaves.index(key))
    return ["/".join(key) for key in leaves]


def draw_scene(seed: int, away_from_home: float = AWAY_FROM_HOME) -> Scene:
    """Draw scene number `seed`: always the same for the same number; long side 128 px, short side 96 to 128.

    Seeds from 1_000_000 on are what the models in this package were trained on; tests and the demo use smaller ones.

    Args:
        seed: number of the scene.
        away_from_home: share of objects in surroundings that are not their own, 0 to 1.

    Returns:
        Image, truth and pieces.
    """
    rng = np.random.default_rng(seed)
    short = int(rng.choice((96, 102, 112, 120, 128)))
    height, width = (short, 128) if rng.random() < 0.75 else (128, short)
    kind, names = _choose(rng, away_from_home)
    backdrop = draw_backdrop(rng, height, width, kind)

    canvas = Image.fromarray(backdrop.colour.clip(0, 255).astype(np.uint8))
    canvas = canvas.resize((width * _SCALE, height * _SCALE), Image.Resampling.BILINEAR)
    leaf_canvas = Image.new("L", canvas.size)
    draws = (ImageDraw.Draw(canvas), ImageDraw.Draw(leaf_canvas))
    slots = (rng.permutation(len(names)) + rng.uniform(0.25, 0.75, len(names))) / len(names)
    class_of, part_of, whole_of, sub_of = [np.zeros(256, np.uint8) for _ in range(4)]
    leaf, number = 1, len(BACKGROUNDS) + 1
    for name, slot in zip(names, slots, strict=True):
        area_px = rng.uniform(*_AREA_SHARES[len(names)]) * height * width
        shapes, matrix, origin = _frame(rng, name, kind, area_px, (height, width), slot * width, backdrop.horizon_px)
        keys = _draw_object(draws, shapes, matrix, origin, leaf)
        whole, number = number, number + 1
        parts: dict[str, int] = {}
        for key in keys:
            part, _, detail = key.partition("/")
            if part not in parts:
                parts[part], number = number, number + 1
            class_of[leaf], whole_of[leaf], part_of[leaf] = TOY.index(name), whole, parts[part]
            sub_of[leaf] = number if detail else parts[part]
            number += bool(detail)
            leaf += 1

    leaves = np.asarray(leaf_canvas)[::_SCALE, ::_SCALE]
    image = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32)
    shade = 1 + 0.05 * smooth_noise(rng, height, width, 9) + 0.035 * rng.standard_normal((height, width), np.float32)
    light = rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, width, dtype=np.float32)[None]
    image = (image * (shade + light)[..., None]).clip(0, 255).astype(np.uint8)
    levels = np.stack([np.where(leaves == 0, backdrop.region, table[leaves]) for table in (sub_of, part_of, whole_of)])
    truth = class_of[leaves]
    seen = np.bincount(truth.ravel(), minlength=len(TOY.classes) + 1)[1:] > 0
    share = np.bincount(levels[2].ravel(), minlength=256)[1 : len(BACKGROUNDS) + 1] / leaves.size
    return Scene(
        image=image,
        truth=truth,
        levels=levels,
        classes=tuple(name for name, there in zip(TOY.classes, seen, strict=True) if there),
        backgrounds=tuple(w for w, s in zip(BACKGROUNDS, share, strict=True) if s >= MIN_BACKGROUND_SHARE),
    )
