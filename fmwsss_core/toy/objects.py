"""The twelve objects of the toy world as coloured polygons, each with parts and sub-parts.

An object is a list of `Shape`s in painting order, in its own frame: x to the right and y down, about -1 to 1, feet at the
largest y. Shapes with the same part name belong to one part; shapes with the same part and detail name to one sub-part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


class Shape(NamedTuple):
    """One polygon: the part it belongs to, the sub-part (empty: none), its colour and its corners."""

    part: str
    detail: str
    colour: Colour
    points: Points


VIVID: tuple[Colour, ...] = (
    (205, 48, 42), (232, 150, 30), (236, 205, 60), (60, 150, 70), (45, 100, 190), (120, 60, 160), (225, 110, 150), (40, 160, 165),
)  # fmt: skip
DARK: tuple[Colour, ...] = ((45, 45, 52), (95, 35, 35), (30, 70, 50), (35, 50, 95), (80, 55, 35))
PALE: tuple[Colour, ...] = ((240, 238, 230), (245, 225, 190), (225, 235, 245), (250, 205, 195), (230, 230, 160))
GLASS: Colour = (150, 205, 232)
RUBBER: Colour = (40, 38, 42)
METAL: Colour = (188, 190, 196)


def _pick(rng: np.random.Generator, palette: Sequence[Colour]) -> Colour:
    base = palette[int(rng.integers(len(palette)))]
    r, g, b = (int(np.clip(value + rng.integers(-16, 17), 0, 255)) for value in base)
    return r, g, b


def _tone(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255, int(value * factor)) for value in colour)
    return r, g, b


def _other(rng: np.random.Generator, palette: Sequence[Colour], colour: Colour) -> Colour:
    """A palette colour far enough from `colour` to be seen on it."""
    far = [other for other in palette if sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > 130]
    return _pick(rng, far)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


_TURN = [(float(np.cos(a)), float(np.sin(a))) for a in np.linspace(0, 2 * np.pi, 20, endpoint=False)]


def _oval(x: float, y: float, rx: float, ry: float) -> Points:
    return [(x + rx * c, y + ry * s) for c, s in _TURN]


def _round_box(x0: float, y0: float, x1: float, y1: float, r: float) -> Points:
    return [
        (x0 + r, y0),
        (x1 - r, y0),
        (x1, y0 + r),
        (x1, y1 - r),
        (x1 - r, y1),
        (x0 + r, y1),
        (x0, y1 - r),
        (x0, y0 + r),
    ]


def _wheels(rng: np.random.Generator, xs: Sequence[float], y: float, r: float, hub: Colour) -> list[Shape]:
    shapes = []
    share = rng.uniform(0.45, 0.6)
    for number, x in enumerate(xs):
        shapes.append(Shape(f"wheel {number}", "", RUBBER, _oval(x, y, r, r)))
        shapes.append(Shape(f"wheel {number}", "hub", hub, _oval(x, y, r * share, r * share)))
    return shapes


def _boat(rng: np.random.Generator) -> list[Shape]:
    hull, sail = _pick(rng, VIVID + DARK), _pick(rng, PALE)
    stripe = _other(rng, VIVID, sail)
    band = _other(rng, PALE, hull)
    top = rng.uniform(-1.1, -0.85)
    shapes = [
        Shape("mast", "", (110, 75, 45), _box(-0.05, top, 0.03, 0.45)),
        Shape("sail", "", sail, [(0.06, top + 0.05), (0.06, 0.3), (0.85, 0.3), (0.5, -0.3)]),
        Shape("sail", "stripe", stripe, [(0.06, -0.28), (0.06, 0.0), (0.69, 0.0), (0.52, -0.28)]),
        Shape(
            "jib",
            "",
            _tone(sail, 0.86) if rng.random() < 0.5 else stripe,
            [(-0.08, top + 0.2), (-0.08, 0.3), (-0.7, 0.3)],
        ),
        Shape("hull", "", hull, [(-1.0, 0.4), (1.0, 0.4), (0.72, 0.95), (-0.68, 0.95)]),
        Shape("hull", "band", band, [(-0.96, 0.48), (0.96, 0.48), (0.89, 0.62), (-0.87, 0.62)]),
    ]
    if rng.random() < 0.6:
        shapes.append(Shape("flag", "", _pick(rng, VIVID), [(0.03, top), (0.35, top + 0.1), (0.03, top + 0.2)]))
    return shapes


def _train(rng: np.random.Generator) -> list[Shape]:
    boiler = _pick(rng, DARK + VIVID[:1] + VIVID[3:5])
    cab, hub = _other(rng, VIVID, boiler), _pick(rng, VIVID[:3])
    height = rng.uniform(-0.9, -0.75)
    return [
        Shape("chimney", "", _tone(boiler, 0.7), _box(-0.68, height, -0.46, -0.25)),
        Shape("chimney", "rim", _tone(hub, 0.9), _box(-0.76, height - 0.08, -0.38, height + 0.09)),
        Shape("dome", "", METAL, _oval(-0.08, -0.3, 0.15, 0.2)),
        Shape("boiler", "", boiler, _round_box(-0.9, -0.3, 0.4, 0.3, 0.12)),
        Shape("boiler", "ring", hub, _box(-0.34, -0.3, -0.22, 0.3)),
        Shape("boiler", "lamp", (250, 235, 150), _oval(-0.86, -0.02, 0.1, 0.12)),
        Shape("cab", "", cab, _box(0.32, -0.75, 0.98, 0.32)),
        Shape("cab", "window", GLASS, _box(0.47, -0.56, 0.83, -0.18)),
        Shape("roof", "", _tone(cab, 0.55), _box(0.22, -0.9, 1.08, -0.72)),
        Shape("frame", "", _tone(boiler, 0.6) if sum(boiler) > 200 else (120, 45, 40), _box(-1.0, 0.28, 1.0, 0.46)),
        Shape("catcher", "", METAL, [(-0.92, 0.42), (-0.72, 0.75), (-1.2, 0.75)]),
        *_wheels(rng, (-0.52, -0.06, 0.62), 0.5, 0.26, hub),
    ]


def _car(rng: np.random.Generator) -> list[Shape]:
    paint = _pick(rng, (*VIVID, PALE[0]))
    shift, roof = rng.uniform(-0.12, 0.12), rng.uniform(-0.72, -0.56)
    low = -0.12
    cabin = [(-0.68 + shift, low), (-0.42 + shift, roof), (0.28 + shift, roof), (0.58 + shift, low)]
    pane = roof + 0.1
    return [
        Shape("cabin", "", _tone(paint, 0.68), cabin),
        Shape(
            "cabin",
            "window 0",
            GLASS,
            [(-0.52 + shift, low), (-0.36 + shift, pane), (-0.1 + shift, pane), (-0.1 + shift, low)],
        ),
        Shape(
            "cabin",
            "window 1",
            GLASS,
            [(0.0 + shift, low), (0.0 + shift, pane), (0.22 + shift, pane), (0.43 + shift, low)],
        ),
        Shape("body", "", paint, [(-1, 0.3), (-1, 0), (-0.9, -0.15), (0.55, -0.15), (0.9, -0.05), (1, 0.1), (1, 0.3)]),
        Shape("body", "stripe", _other(rng, PALE + DARK, paint), _box(-0.98, 0.12, 0.98, 0.21)),
        Shape("body", "lamp", (252, 240, 160), _oval(0.9, 0.03, 0.09, 0.09)),
        *_wheels(rng, (-0.55, 0.55), 0.33, rng.uniform(0.22, 0.27), METAL),
    ]


def _bus(rng: np.random.Generator) -> list[Shape]:
    paint = _pick(rng, VIVID[:5])
    count = int(rng.integers(3, 5))
    step = 1.35 / count
    shapes = [
        Shape("body", "", paint, _round_box(-1.0, -0.62, 1.0, 0.4, 0.08)),
        Shape("roof", "", _tone(_other(rng, PALE, paint), 0.95), _round_box(-1.0, -0.8, 1.0, -0.55, 0.08)),
        Shape("body", "stripe", _other(rng, PALE + DARK, paint), _box(-1.0, 0.08, 0.52, 0.22)),
    ]
    for number in range(count):
        x = -0.9 + number * step
        shapes.append(Shape("body", f"window {number}", GLASS, _box(x, -0.45, x + step - 0.1, -0.05)))
    shapes += [
        Shape("door", "", _tone(paint, 0.55), _box(0.55, -0.47, 0.9, 0.38)),
        Shape("door", "pane", GLASS, _box(0.61, -0.38, 0.84, 0.05)),
        *_wheels(rng, (-0.55, 0.32), 0.42, 0.22, METAL),
    ]
    return shapes


def _plane(rng: np.random.Generator) -> list[Shape]:
    skin, trim = _pick(rng, (*PALE[:3], METAL)), _pick(rng, VIVID)
    nose = [
        (-0.75, -0.2),
        (0.6, -0.2),
        (0.88, -0.12),
        (1.02, 0.02),
        (0.88, 0.14),
        (0.6, 0.2),
        (-0.5, 0.2),
        (-1.0, -0.12),
    ]
    shapes = [
        Shape("far wing", "", _tone(skin, 0.62), [(0.25, -0.12), (-0.12, -0.58), (-0.34, -0.58), (-0.2, -0.12)]),
        Shape("fin", "", trim, [(-1.05, -0.68), (-0.78, -0.68), (-0.5, -0.15), (-0.95, -0.12)]),
        Shape("fin", "band", _other(rng, PALE, trim), [(-1.03, -0.52), (-0.7, -0.52), (-0.6, -0.36), (-1.0, -0.36)]),
        Shape("fuselage", "", skin, nose),
        Shape("fuselage", "cockpit", (70, 110, 150), [(0.7, -0.16), (0.9, -0.1), (0.95, -0.01), (0.72, -0.01)]),
        Shape("fuselage", "windows", (70, 110, 150), _box(-0.5, -0.11, 0.55, 0.0)),
        Shape("tailplane", "", _tone(trim, 0.75), [(-0.72, -0.05), (-0.98, 0.24), (-1.12, 0.24), (-1.02, -0.05)]),
        Shape("wing", "", _tone(skin, 0.78), [(0.32, 0.04), (-0.28, 0.75), (-0.58, 0.75), (-0.28, 0.04)]),
        Shape("wing", "tip", trim, [(-0.11, 0.55), (-0.28, 0.75), (-0.58, 0.75), (-0.5, 0.55)]),
        Shape("engine", "", _tone(trim, 0.6), _oval(0.14, 0.36, 0.22, 0.12)),
    ]
    return shapes


def _balloon(rng: np.random.Generator) -> list[Shape]:
    cloth = _pick(rng, VIVID)
    stripe, basket = _other(rng, VIVID + PALE, cloth), (140, 92, 50)
    envelope = [(0.72 * c, -0.35 + 0.72 * s) for c, s in _TURN if s <= 0.55] + [(0.2, 0.52), (-0.2, 0.52)]
    envelope.sort(key=lambda point: np.arctan2(point[1] + 0.2, point[0]))

    def gore(left: float, right: float) -> Points:
        ys = np.linspace(-1.05, 0.5, 9)
        half = np.sqrt(np.clip(1 - ((ys + 0.35) / 0.72) ** 2, 0, 1)) * 0.72
        half = np.where(ys > 0.05, 0.2 + (0.5 - ys) * 0.87, half)
        return [(left * h, y) for h, y in zip(half, ys, strict=True)] + [
            (right * h, y) for h, y in zip(half[::-1], ys[::-1], strict=True)
        ]

    return [
        Shape("ropes", "", (90, 70, 55), [(-0.18, 0.5), (0.18, 0.5), (0.14, 0.8), (-0.14, 0.8)]),
        Shape("envelope", "", cloth, envelope),
        Shape("envelope", "gore 0", stripe, gore(-0.72, -0.38)),
        Shape("envelope", "gore 1", stripe, gore(0.38, 0.72)),
        Shape("envelope", "gore 2", _tone(stripe, 0.85), gore(-0.14, 0.14)),
        Shape("basket", "", basket, [(-0.2, 0.75), (0.2, 0.75), (0.16, 1.05), (-0.16, 1.05)]),
        Shape("basket", "rim", _tone(basket, 1.5), _box(-0.22, 0.74, 0.22, 0.82)),
    ]


def _legs(xs: Sequence[float], top: float, width: float, colour: Colour, hoof: Colour) -> list[Shape]:
    shapes = []
    for number, x in enumerate(xs):
        shapes.append(
            Shape(f"leg {number}", "", _tone(colour, 0.78 if number % 2 else 0.95), _box(x, top, x + width, 0.95))
        )
        shapes.append(Shape(f"leg {number}", "hoof", hoof, _box(x - 0.01, 0.82, x + width + 0.01, 0.97)))
    return shapes


def _cow(rng: np.random.Generator) -> list[Shape]:
    hide = _pick(rng, ((238, 234, 226), (150, 95, 55), (70, 55, 50), (205, 170, 120)))
    spot = _other(rng, ((45, 40, 42), (120, 70, 40), (240, 236, 228)), hide)
    head_y = rng.uniform(-0.6, -0.3)
    shapes = [
        Shape("tail", "", _tone(hide, 0.7), [(-0.82, -0.3), (-0.74, -0.3), (-0.9, 0.45), (-1.02, 0.42)]),
        *_legs((-0.66, -0.4, 0.22, 0.46), 0.2, 0.18, hide, (50, 42, 40)),
        Shape("body", "", hide, _round_box(-0.82, -0.42, 0.68, 0.34, 0.18)),
        Shape("body", "udder", (240, 170, 170), _oval(-0.12, 0.34, 0.16, 0.13)),
    ]
    for number, x in enumerate((-0.5, 0.0, 0.42)[: int(rng.integers(2, 4))]):
        rx, ry = rng.uniform(0.14, 0.24), rng.uniform(0.13, 0.22)
        shapes.append(Shape("body", f"spot {number}", spot, _oval(x, rng.uniform(-0.2, 0.08), rx, ry)))
    return [
        *shapes,
        Shape("horns", "", (232, 222, 190), [(0.58, head_y - 0.42), (0.68, head_y - 0.2), (0.98, head_y - 0.2), (1.08, head_y - 0.42), (0.95, head_y - 0.1), (0.7, head_y - 0.1)]),
        Shape("head", "", _tone(hide, 0.86), _round_box(0.58, head_y - 0.22, 1.08, head_y + 0.42, 0.12)),
        Shape("head", "muzzle", (235, 175, 165), _oval(0.84, head_y + 0.34, 0.25, 0.16)),
        Shape("head", "eyes", (25, 22, 25), _oval(0.72, head_y - 0.02, 0.06, 0.07)),
        Shape("head", "eyes", (25, 22, 25), _oval(0.94, head_y - 0.02, 0.06, 0.07)),
    ]  # fmt: skip


def _sheep(rng: np.random.Generator) -> list[Shape]:
    wool = _pick(rng, ((244, 240, 230), (232, 220, 196), (205, 200, 196)))
    face = _pick(rng, ((50, 46, 50), (88, 66, 52), (70, 62, 80)))
    lobes = int(rng.integers(9, 12))
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    swell = 0.92 + 0.12 * np.abs(np.sin(angles * lobes / 2))
    fleece = [
        (float(-0.1 + 0.82 * s * np.cos(a)), float(-0.12 + 0.55 * s * np.sin(a)))
        for a, s in zip(angles, swell, strict=True)
    ]
    head_y = rng.uniform(-0.4, -0.15)
    return [
        *_legs((-0.6, -0.36, 0.12, 0.34), 0.2, 0.15, face, _tone(face, 0.5)),
        Shape("fleece", "", wool, fleece),
        Shape("fleece", "shade", _tone(wool, 0.8), _oval(-0.15, 0.2, 0.58, 0.16)),
        Shape("tail", "", _tone(wool, 0.88), _oval(-0.92, -0.15, 0.14, 0.13)),
        Shape("head", "", face, _oval(0.78, head_y + 0.05, 0.24, 0.34)),
        Shape("head", "ears", _tone(face, 1.7), _oval(0.52, head_y - 0.1, 0.13, 0.08)),
        Shape("head", "ears", _tone(face, 1.7), _oval(1.03, head_y - 0.1, 0.13, 0.08)),
        Shape("head", "eyes", (245, 245, 240), _oval(0.7, head_y + 0.0, 0.06, 0.07)),
        Shape("head", "eyes", (245, 245, 240), _oval(0.88, head_y + 0.0, 0.06, 0.07)),
        Shape("topknot", "", _tone(wool, 0.95), _oval(0.77, head_y - 0.28, 0.22, 0.14)),
    ]


def _bird(rng: np.random.Generator) -> list[Shape]:
    plume = _pick(rng, VIVID + DARK[:1])
    belly, wing = _other(rng, PALE, plume), _tone(plume, 0.62)
    lift = rng.uniform(-0.9, 0.5)  # the wing tip: up in a beat, or folded down
    return [
        Shape("tail", "", wing, [(-0.5, 0.0), (-1.1, -0.22), (-1.12, 0.16), (-0.5, 0.22)]),
        Shape("tail", "band", belly, [(-0.86, -0.13), (-0.99, -0.18), (-1.0, 0.18), (-0.87, 0.19)]),
        Shape("beak", "", (240, 165, 40), [(0.88, -0.4), (1.25, -0.26), (0.88, -0.16)]),
        Shape("body", "", plume, _oval(0.0, 0.1, 0.68, 0.42)),
        Shape("body", "belly", belly, _oval(0.12, 0.28, 0.44, 0.22)),
        Shape("head", "", _tone(plume, 1.25), _oval(0.66, -0.3, 0.32, 0.3)),
        Shape("head", "eye", (250, 250, 245), _oval(0.75, -0.36, 0.11, 0.11)),
        Shape("head", "eye", (20, 20, 25), _oval(0.78, -0.36, 0.06, 0.06)),
        Shape("wing", "", wing, [(0.28, -0.02), (0.1, 0.14), (-0.3, 0.14), (-0.72, lift + 0.06), (-0.62, lift - 0.14)]),
        Shape("wing", "tip", belly, [(-0.72, lift + 0.06), (-0.62, lift - 0.14), (-0.28, 0.62 * lift - 0.1), (-0.52, 0.58 * lift + 0.1)]),
        Shape("feet", "", (225, 140, 40), [(-0.05, 0.48), (0.02, 0.48), (0.06, 0.72), (-0.14, 0.72)]),
        Shape("feet", "", (225, 140, 40), [(0.16, 0.48), (0.23, 0.48), (0.27, 0.72), (0.07, 0.72)]),
    ]  # fmt: skip


def _fish(rng: np.random.Generator) -> list[Shape]:
    scale = _pick(rng, VIVID)
    stripe, fin = _other(rng, PALE + VIVID, scale), _tone(scale, 0.66)
    depth = rng.uniform(0.42, 0.58)
    shapes = [
        Shape("tail", "", fin, [(-0.55, 0.0), (-1.08, -0.48), (-0.95, 0.0), (-1.08, 0.48)]),
        Shape(
            "tail",
            "edge",
            stripe,
            [(-0.9, -0.31), (-1.08, -0.48), (-0.95, 0.0), (-1.08, 0.48), (-0.9, 0.31), (-0.82, 0.0)],
        ),
        Shape(
            "back fin",
            "",
            fin,
            [(-0.4, -depth * 0.75), (-0.15, -depth - 0.28), (0.35, -depth - 0.08), (0.35, -depth * 0.75)],
        ),
        Shape("low fin", "", fin, [(-0.2, depth * 0.8), (-0.3, depth + 0.22), (0.15, depth * 0.85)]),
        Shape("body", "", scale, _oval(0.1, 0.0, 0.82, depth)),
    ]
    for number, x in enumerate((-0.38, 0.02)):
        reach = depth * np.sqrt(1 - ((x - 0.03) / 0.82) ** 2) * 0.93
        shapes.append(
            Shape(
                "body",
                f"stripe {number}",
                stripe,
                [
                    (x - 0.08, -reach),
                    (x + 0.1, -reach),
                    (x + 0.14, 0.0),
                    (x + 0.1, reach),
                    (x - 0.08, reach),
                    (x - 0.04, 0.0),
                ],
            )
        )
    return [
        *shapes,
        Shape("side fin", "", fin, [(0.18, 0.06), (-0.14, 0.3), (0.2, 0.28)]),
        Shape("face", "", _tone(scale, 1.3), [(0.45, -depth * 0.88), (0.72, -depth * 0.62), (0.88, -depth * 0.25), (0.93, 0.0), (0.86, depth * 0.33), (0.7, depth * 0.65), (0.45, depth * 0.88), (0.56, 0.0)]),
        Shape("face", "eye", (250, 250, 245), _oval(0.66, -0.12, 0.12, 0.12)),
        Shape("face", "eye", (20, 20, 25), _oval(0.69, -0.12, 0.06, 0.06)),
    ]  # fmt: skip


def _snowman(rng: np.random.Generator) -> list[Shape]:
    hat, scarf = _pick(rng, DARK), _pick(rng, VIVID)
    snow = _pick(rng, ((240, 244, 250),))
    wave = rng.uniform(-0.5, 0.0)
    return [
        Shape("arm 0", "", (105, 70, 40), [(-0.35, -0.02), (-0.86, wave - 0.06), (-0.88, wave + 0.04), (-0.35, 0.1)]),
        Shape("arm 1", "", (105, 70, 40), [(0.35, -0.02), (0.86, wave - 0.06), (0.88, wave + 0.04), (0.35, 0.1)]),
        Shape("base", "", _tone(snow, 0.84), _oval(0.0, 0.62, 0.58, 0.46)),
        Shape("chest", "", _tone(snow, 0.94), _oval(0.0, 0.06, 0.42, 0.36)),
        Shape("chest", "buttons", (35, 35, 40), _oval(0.0, -0.02, 0.06, 0.06)),
        Shape("chest", "buttons", (35, 35, 40), _oval(0.0, 0.18, 0.06, 0.06)),
        Shape("head", "", snow, _oval(0.0, -0.46, 0.31, 0.29)),
        Shape("head", "eyes", (30, 30, 35), _oval(-0.11, -0.52, 0.05, 0.05)),
        Shape("head", "eyes", (30, 30, 35), _oval(0.13, -0.52, 0.05, 0.05)),
        Shape("head", "nose", (235, 125, 35), [(0.0, -0.48), (0.34, -0.38), (0.0, -0.34)]),
        Shape("scarf", "", scarf, _round_box(-0.34, -0.27, 0.34, -0.11, 0.05)),
        Shape("scarf", "end", _tone(scarf, 0.75), _box(0.1, -0.15, 0.28, 0.2)),
        Shape(
            "hat", "", hat, [(-0.42, -0.66), (-0.24, -0.72), (-0.24, -1.1), (0.24, -1.1), (0.24, -0.72), (0.42, -0.66)]
        ),
        Shape("hat", "band", _other(rng, VIVID, hat), _box(-0.24, -0.86, 0.24, -0.73)),
    ]


def _cactus(rng: np.random.Generator) -> list[Shape]:
    skin = _pick(rng, ((60, 140, 70), (90, 150, 60), (40, 115, 85)))
    rib, bloom = _tone(skin, 0.66), _pick(rng, (VIVID[0], VIVID[6], VIVID[1], VIVID[5]))
    left, right = rng.uniform(-0.35, 0.05), rng.uniform(-0.5, -0.1)
    shapes = [
        Shape("left arm", "", _tone(skin, 0.9), [(-0.2, 0.32), (-0.66, 0.32), (-0.76, 0.2), (-0.76, left), (-0.66, left - 0.1), (-0.56, left - 0.1), (-0.48, left), (-0.48, 0.06), (-0.2, 0.06)]),
        Shape("left arm", "rib", rib, _box(-0.65, left + 0.02, -0.58, 0.2)),
        Shape("right arm", "", _tone(skin, 0.9), [(0.2, 0.14), (0.66, 0.14), (0.76, 0.02), (0.76, right), (0.66, right - 0.1), (0.56, right - 0.1), (0.48, right), (0.48, -0.12), (0.2, -0.12)]),
        Shape("right arm", "rib", rib, _box(0.58, right + 0.02, 0.65, 0.02)),
        Shape("trunk", "", skin, _round_box(-0.28, -0.85, 0.28, 1.0, 0.16)),
        Shape("trunk", "rib 0", rib, _box(-0.16, -0.66, -0.08, 0.95)),
        Shape("trunk", "rib 1", rib, _box(0.08, -0.66, 0.16, 0.95)),
        Shape("flower", "", bloom, [(0.24 * r * c, -0.9 + 0.22 * r * s) for (c, s), r in zip(_TURN, (1.0, 1.0, 0.6, 1.0) * 5, strict=True)]),
        Shape("flower", "heart", (250, 220, 80), _oval(0.0, -0.9, 0.1, 0.1)),
    ]  # fmt: skip
    return shapes


OBJECTS: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "boat": _boat, "train": _train, "car": _car, "bus": _bus, "plane": _plane, "balloon": _balloon,
    "cow": _cow, "sheep": _sheep, "bird": _bird, "fish": _fish, "snowman": _snowman, "cactus": _cactus,
}  # fmt: skip
