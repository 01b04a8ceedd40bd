"""The outline of a mask as polygons, for tools that know no masks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

Point = tuple[int, int]
# Steps of x, y along the borders of pixels, the mask on the right; y goes down.
_RIGHT = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}
# From a corner to the pixel on the right of a step.
_PIXEL = {(1, 0): (0, 0), (0, 1): (-1, 0), (-1, 0): (-1, -1), (0, -1): (0, -1)}


def corner_outlines(mask: Bool[np.ndarray, "height width"]) -> list[list[Point]]:
    """Loops along the borders of the pixels of a mask, which COCO's tools fill to exactly the mask.

    Args:
        mask: of one thing, which may have holes.

    Returns:
        Corners as x, y, those on straight lines left out; a hole is joined to the loop around it by a cut.
    """
    return [_simple(loop) for loop in _joined([[point for point, _ in loop] for loop in _loops(mask)])]


def pixel_outlines(mask: Bool[np.ndarray, "height width"]) -> list[list[Point]]:
    """Loops through the pixels at the border of a mask, which tools that draw an outline when they fill it expect.

    Such are OpenCV's `fillPoly` and all that build on it. Otherwise as `corner_outlines`.
    """
    loops = _loops(mask)
    pixels = [[(x + _PIXEL[step][0], y + _PIXEL[step][1]) for (x, y), step in loop] for loop in loops]
    are_outer = [_area([point for point, _ in loop]) > 0 for loop in loops]
    return [_simple(loop) for loop in _joined(pixels, are_outer)]


def _loops(mask: Bool[np.ndarray, "height width"]) -> list[list[tuple[Point, Point]]]:
    """All loops around a mask as unit steps: the corner that each begins at, and its direction.

    A hole is a loop the other way around. Pixels that touch at a corner alone are in two loops.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), bool)
    padded[1:-1, 1:-1] = mask
    steps: dict[Point, list[Point]] = {}
    for (dx, dy), inside, outside in (
        ((1, 0), padded[1:, 1:-1], padded[:-1, 1:-1]),  # along the top of a pixel
        ((-1, 0), padded[:-1, 1:-1], padded[1:, 1:-1]),  # along its bottom
        ((0, -1), padded[1:-1, 1:], padded[1:-1, :-1]),  # along its left side
        ((0, 1), padded[1:-1, :-1], padded[1:-1, 1:]),  # along its right side
    ):
        ys, xs = np.nonzero(inside & ~outside)
        for x, y in zip((xs + (dx < 0)).tolist(), (ys + (dy < 0)).tolist(), strict=True):
            steps.setdefault((x, y), []).append((dx, dy))
    loops = []
    while steps:
        start = point = next(iter(steps))
        last: Point | None = None
        loop = []
        while True:
            there = steps[point]
            # Where two pixels touch at a corner, turn right: each stays in a loop of its own.
            step = there[0] if last is None else next(own for own in (_RIGHT[last], *there) if own in there)
            there.remove(step)
            if not there:
                del steps[point]
            loop.append((point, step))
            last, point = step, (point[0] + step[0], point[1] + step[1])
            if point == start:
                break
        loops.append(loop)
    return loops


def _joined(loops: list[list[Point]], are_outer: list[bool] | None = None) -> list[list[Point]]:
    """Outer loops, with each hole in the loop that it is nearest to."""
    are_outer = are_outer or [_area(loop) > 0 for loop in loops]
    outer = [loop for loop, is_outer in zip(loops, are_outer, strict=True) if is_outer]
    for hole in (loop for loop, is_outer in zip(loops, are_outer, strict=True) if not is_outer):
        best: tuple[int, int, int, int] | None = None
        for number, loop in enumerate(outer):
            gaps = _gaps(np.array(loop), np.array(hole))
            at, hole_at = np.unravel_index(int(gaps.argmin()), gaps.shape)
            if best is None or gaps[at, hole_at] < best[0]:
                best = (int(gaps[at, hole_at]), number, int(at), int(hole_at))
        assert best is not None
        _, number, at, hole_at = best
        loop = outer[number]
        around = [*hole[hole_at:], *hole[: hole_at + 1]]
        outer[number] = [*loop[: at + 1], *around, *loop[at:]]
    return outer


def _gaps(
    first: Int64[np.ndarray, "first 2"], second: Int64[np.ndarray, "second 2"]
) -> Int64[np.ndarray, "first second"]:
    """Squares of the distances between the points of two loops."""
    return ((first[:, None] - second[None]) ** 2).sum(-1)


def _simple(loop: list[Point]) -> list[Point]:
    """A loop without points that are there twice in a row, or in the middle of a straight line."""
    kept: list[Point] = []
    for point in loop:
        if kept and point == kept[-1]:
            continue
        while len(kept) > 1 and _goes_on(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def _goes_on(before: Point, point: Point, after: Point) -> bool:
    first = (point[0] - before[0], point[1] - before[1])
    second = (after[0] - point[0], after[1] - point[1])
    is_line = first[0] * second[1] == first[1] * second[0]
    return is_line and first[0] * second[0] + first[1] * second[1] > 0


def _area(loop: list[Point]) -> float:
    """The area of a loop of corners; negative of a hole."""
    xs, ys = np.array(loop, float).T
    return float((xs * np.roll(ys, -1) - ys * np.roll(xs, -1)).sum() / 2)
