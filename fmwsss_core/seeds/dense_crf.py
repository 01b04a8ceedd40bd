"""Fully connected CRF with Gaussian edge potentials on a permutohedral lattice (docs/method.md, M5.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from scipy import sparse

TINY = 1e-20


@dataclass(frozen=True)
class CrfSettings:
    """A fully connected CRF with two Gaussian kernels (Krähenbühl and Koltun 2011). The defaults are CLIP-ES's.

    Attributes:
        num_iterations: mean-field updates.
        smooth_px: deviation of the kernel on position alone.
        smooth_weight: its weight.
        bilateral_px: deviation in position of the kernel on position and colour.
        bilateral_rgb: its deviation in colour, in grey levels.
        bilateral_weight: its weight.
    """

    num_iterations: int = 10
    smooth_px: float = 1.0
    smooth_weight: float = 3.0
    bilateral_px: float = 67.0
    bilateral_rgb: float = 3.0
    bilateral_weight: float = 4.0


def dense_crf(
    image: UInt8[np.ndarray, "height width 3"],
    probabilities: Float32[np.ndarray, "labels height width"],
    settings: CrfSettings | None = None,
) -> Float32[np.ndarray, "labels height width"]:
    """Mean-field marginals of a dense CRF with Potts compatibility.

    Q_i(l) is proportional to p_i(l) exp(sum over kernels m of w_m sum_j k_m(i, j) Q_j(l)), each kernel normalised
    symmetrically: k / sqrt(n_i n_j) with n_i the sum of its row. Sums run over all pixels, the pixel itself included.
    Kernels are applied on a permutohedral lattice (Adams et al. 2010), which approximates them.

    Args:
        image: RGB.
        probabilities: not negative; a pixel's need not sum to one.
        settings: the defaults if left out.
    """
    settings = settings or CrfSettings()
    num_labels, height, width = probabilities.shape
    rows, columns = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    position = np.stack([columns, rows], axis=1)
    colour = image.reshape(-1, 3).astype(np.float32) / settings.bilateral_rgb
    kernels = [
        (settings.smooth_weight, _NormalisedKernel(position / settings.smooth_px)),
        (
            settings.bilateral_weight,
            _NormalisedKernel(np.concatenate([position / settings.bilateral_px, colour], axis=1)),
        ),
    ]
    unary = np.log(np.maximum(probabilities.reshape(num_labels, -1).T, TINY)).astype(np.float32)
    marginals = _softmax(unary)
    for _ in range(settings.num_iterations):
        message = unary.copy()
        for weight, kernel in kernels:
            message += weight * kernel(marginals)
        marginals = _softmax(message)
    return np.ascontiguousarray(marginals.T).reshape(num_labels, height, width)


class _NormalisedKernel:
    def __init__(self, features: Float32[np.ndarray, "pixels dimensions"]) -> None:
        self._lattice = _Lattice(features)
        sums = self._lattice(np.ones((len(features), 1), dtype=np.float32))
        self._scale = 1 / np.sqrt(np.maximum(sums, TINY))

    def __call__(self, values: Float32[np.ndarray, "pixels labels"]) -> Float32[np.ndarray, "pixels labels"]:
        return self._scale * self._lattice(self._scale * values)


class _Lattice:
    """Gaussian filtering of unit deviation, up to a factor: splat, blur along every axis of the lattice, slice.

    All three are sparse matrices that depend on the features alone.
    """

    def __init__(self, features: Float32[np.ndarray, "pixels dimensions"]) -> None:
        corners, weights = _simplices(features)
        num_pixels, num_corners, dimensions = corners.shape
        # A lattice point as one number, with room around for neighbours.
        lowest = corners.min(axis=(0, 1)) - num_corners
        span = corners.max(axis=(0, 1)) - lowest + num_corners + 1
        stride = np.cumprod(np.concatenate([[1], span[:-1]]))
        assert np.prod(span.astype(float)) < 2.0**63, span
        points, point = np.unique(((corners - lowest) @ stride).ravel(), return_inverse=True)
        pixel = np.repeat(np.arange(num_pixels), num_corners)
        self._slice = sparse.csr_array((weights.ravel(), (pixel, point.ravel())), shape=(num_pixels, len(points)))
        self._splat = self._slice.T.tocsr()
        self._blurs = []
        for axis in range(num_corners):
            step = np.full(dimensions, -1)
            if axis < dimensions:
                step[axis] = dimensions
            self._blurs.append(_blur(points, int(step @ stride)))

    def __call__(self, values: Float32[np.ndarray, "pixels labels"]) -> Float32[np.ndarray, "pixels labels"]:
        on_points = self._splat @ values
        for blur in self._blurs:
            on_points = blur @ on_points
        return self._slice @ on_points


def _blur(points: Int64[np.ndarray, " points"], step: int) -> sparse.csr_array:
    """1/2, 1, 1/2 along one axis of the lattice; what no pixel touches is not there."""
    every = np.arange(len(points))
    rows, columns, weights = [every], [every], [np.ones(len(points))]
    for neighbour in (points - step, points + step):
        found = np.minimum(np.searchsorted(points, neighbour), len(points) - 1)
        there = np.flatnonzero(points[found] == neighbour)
        rows.append(there)
        columns.append(found[there])
        weights.append(np.full(len(there), 0.5))
    data = np.concatenate(weights).astype(np.float32)
    shape = (len(points), len(points))
    return sparse.csr_array((data, (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def _simplices(
    features: Float32[np.ndarray, "pixels dimensions"],
) -> tuple[Int64[np.ndarray, "pixels corners dimensions"], Float32[np.ndarray, "pixels corners"]]:
    """The corners of the lattice's simplex around every point, and the point's barycentric coordinates (Adams et al.).

    The last of a corner's d + 1 coordinates, which sum to zero, is left out.
    """
    num_pixels, dimensions = features.shape
    side = dimensions + 1
    axis = np.arange(1, side)
    # Onto the hyperplane of coordinate sum zero, scaled so that the blur has unit deviation.
    scaled = features.astype(np.float64) * (np.sqrt(2 / 3) * side / np.sqrt(axis * (axis + 1)))
    above = np.concatenate([np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1], np.zeros((num_pixels, 1))], axis=1)
    elevated = above - np.concatenate([np.zeros((num_pixels, 1)), axis * scaled], axis=1)

    nearest = np.round(elevated / side).astype(np.int64)
    excess = nearest.sum(axis=1, keepdims=True)
    order = np.argsort(-(elevated - nearest * side), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(side)[None].repeat(num_pixels, axis=0), axis=1)
    rank += excess
    wrapped = (rank < 0).astype(np.int64) - (rank >= side)
    rank += side * wrapped
    origin = side * (nearest + wrapped)

    # Coordinate k of the sorted offsets adds to barycentric weight d - k what it takes from the next.
    sorted_offset = np.empty_like(elevated)
    np.put_along_axis(sorted_offset, rank, (elevated - origin) / side, axis=1)
    weights = np.empty((num_pixels, side))
    weights[:, 0] = 1 - sorted_offset[:, 0] + sorted_offset[:, -1]
    weights[:, 1:] = (sorted_offset[:, :-1] - sorted_offset[:, 1:])[:, ::-1]
    remainder = np.arange(side)
    step = np.where(rank[:, None] + remainder[:, None] <= dimensions, remainder[:, None], remainder[:, None] - side)
    return (origin[:, None] + step)[..., :dimensions], weights.astype(np.float32)


def _softmax(logits: Float[np.ndarray, "pixels labels"]) -> Float32[np.ndarray, "pixels labels"]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
