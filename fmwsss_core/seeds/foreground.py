"""Foreground or background of a superpixel, learned over the whole dataset from the seeds themselves (ours; M5.5).

One image's maps say which of its superpixels is most like a class, and not whether it is one: min-max puts a foreground
and a background into every image. What sky, grass and walls look like is the same in many images. So a linear model of
what superpixels look like is fitted to the seeds of all other images, each weighted by how clear it was, and its word
counts as much as that of the map. No ground truth has a part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy import optimize

from fmwsss.core.errors import InputError
from fmwsss.core.superpixels.masks import Superpixels

NUM_FOLDS = 5
NUM_COMPONENTS = 64
PENALTY = 30.0
_TINY = 1e-9


@dataclass(frozen=True, eq=False)
class ForegroundModel:
    """A linear model of what makes a superpixel foreground.

    Attributes:
        weight: of each feature.
        bias: added to the weighted sum.
        margin_std: deviation of the margins of the seeds that it was fitted to.
        logit_std: deviation of its own logits on them.
    """

    weight: Float64[np.ndarray, " features"]
    bias: float
    margin_std: float
    logit_std: float

    def logits(self, features: Float[np.ndarray, "superpixels features"]) -> Float64[np.ndarray, " superpixels"]:
        """Log odds of foreground by looks alone."""
        return features.astype(np.float64) @ self.weight + self.bias

    def decide(
        self, features: Float[np.ndarray, "superpixels features"], margins: Float[np.ndarray, " superpixels"]
    ) -> Float64[np.ndarray, " superpixels"]:
        """Looks and map together, each in units of its deviation: above 0 a superpixel is foreground.

        Args:
            features: mean of the image's tokens in each superpixel.
            margins: as `foreground_margins` gives them.
        """
        return margins / self.margin_std + self.logits(features) / self.logit_std


def pooled_tokens(
    superpixels: Superpixels, tokens: Float[np.ndarray, "grid_height grid_width width"]
) -> Float64[np.ndarray, "superpixels width"]:
    """Mean of the image's tokens in each superpixel, each patch weighted by the share of it that the mask covers.

    Args:
        superpixels: of one image.
        tokens: of its patches, such as the input of CLIP's last block without the class token.

    Returns:
        A row for each superpixel; 0 for an empty mask.
    """
    grid_height, grid_width, width = tokens.shape
    flat = tokens.reshape(grid_height * grid_width, width).astype(np.float64)
    pooled = np.zeros((len(superpixels), width))
    for number in range(len(superpixels)):
        share = _cell_means(_cell_means(superpixels.mask(number).astype(np.float64), grid_height).T, grid_width).T
        pooled[number] = share.reshape(-1) @ flat / max(share.sum(), _TINY)
    return pooled


def foreground_margins(
    scores: Float[np.ndarray, "superpixels background_and_present"],
) -> Float64[np.ndarray, " superpixels"]:
    """Best class score minus background score (eq. 9 and 10): above 0 where the seed is foreground.

    Args:
        scores: `Seed.scores`; an image without classes has no foreground.
    """
    values = scores.astype(np.float64)
    best = values[:, 1:].max(axis=1, initial=-np.inf) if values.shape[1] > 1 else np.full(len(values), 0.0)
    return best - values[:, 0]


def fit_foreground(
    features: Float[np.ndarray, "superpixels features"],
    margins: Float[np.ndarray, " superpixels"],
    penalty: float = PENALTY,
    num_components: int = NUM_COMPONENTS,
) -> ForegroundModel:
    """Fits looks to seeds: minimise over (w, b), with y = [m > 0] and principal components z of the scaled features,

        sum_r |m_r| (log(1 + exp(w z_r + b)) - y_r (w z_r + b)) + penalty / 2 |w|^2 .

    Args:
        features: mean tokens of superpixels of many images.
        margins: of their seeds (`foreground_margins`).
        penalty: of the squared weights of the components, which have deviation 1.
        num_components: principal components of the features that are kept, at the most.

    Raises:
        ValueError: no superpixel is foreground in its seed, or none is background.
    """
    target = margins > 0
    if target.all() or not target.any():
        raise InputError(f"all {len(target)} superpixels are {'foreground' if target.any() else 'background'}")
    values = features.astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0) + _TINY
    scaled = (values - mean) / std
    basis = _whitening(scaled, num_components)
    components = scaled @ basis
    importance = np.abs(margins).astype(np.float64)

    def loss(parameters: Float64[np.ndarray, " parameters"]) -> tuple[float, Float64[np.ndarray, " parameters"]]:
        weight, bias = parameters[:-1], parameters[-1]
        logits = components @ weight + bias
        value = (importance * (np.logaddexp(0, logits) - target * logits)).sum() + penalty / 2 * weight @ weight
        residual = importance * (_sigmoid(logits) - target)
        return float(value), np.append(components.T @ residual + penalty * weight, residual.sum())

    found = optimize.minimize(loss, np.zeros(basis.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    weight = basis @ found.x[:-1] / std
    bias = float(found.x[-1] - mean @ weight)
    logits = values @ weight + bias
    return ForegroundModel(weight, bias, float(margins.std()) + _TINY, float(logits.std()) + _TINY)


def fit_folds(
    features: Float[np.ndarray, "superpixels features"],
    margins: Float[np.ndarray, " superpixels"],
    fold: Int[np.ndarray, " superpixels"],
    num_folds: int = NUM_FOLDS,
) -> list[ForegroundModel]:
    """For each fold a model of all other folds: no superpixel is judged by a model that was fitted to its own seed.

    Args:
        features: mean tokens of superpixels.
        margins: of their seeds.
        fold: 0 to `num_folds` - 1; all superpixels of one image in one fold (`fold_of`).
        num_folds: how many models.

    Raises:
        ValueError: the superpixels of the other folds are all foreground or all background.
    """
    return [fit_foreground(features[fold != number], margins[fold != number]) for number in range(num_folds)]


def fold_of(image_ids: Sequence[str], num_folds: int = NUM_FOLDS) -> Int[np.ndarray, " images"]:
    """The fold of each image: by its place in the sorted ids, so that it does not depend on shards."""
    place = {image_id: number for number, image_id in enumerate(sorted(set(image_ids)))}
    return np.array([place[image_id] % num_folds for image_id in image_ids], dtype=np.int64)


def rescore(
    scores: Float32[np.ndarray, "superpixels background_and_present"], decision: Float[np.ndarray, " superpixels"]
) -> Float32[np.ndarray, "superpixels background_and_present"]:
    """Scores whose argmax is background where the decision is below 0, and else the best class as before.

    Background gets sigmoid(-d), class c sigmoid(d) S^c / max S: superpixels are painted by how clear the decision is.

    Args:
        scores: `Seed.scores`.
        decision: `ForegroundModel.decide`.
    """
    share = _sigmoid(np.asarray(decision, dtype=np.float64))
    classes = scores[:, 1:].astype(np.float64)
    best = classes.max(axis=1, keepdims=True, initial=0)
    relative = np.divide(classes, best, out=np.zeros_like(classes), where=best > 0)
    return np.concatenate([(1 - share)[:, None], share[:, None] * relative], axis=1).astype(np.float32)


def _cell_means(values: Float64[np.ndarray, "size other"], num_cells: int) -> Float64[np.ndarray, "{num_cells} other"]:
    """Mean over the rows of each cell; a row that two cells share counts in both, as in adaptive average pooling."""
    size = len(values)
    start = np.arange(num_cells) * size // num_cells
    stop = -(-(np.arange(1, num_cells + 1) * size) // num_cells)
    total = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    return (total[stop] - total[start]) / (stop - start)[:, None]


def _whitening(scaled: Float64[np.ndarray, "rows features"], most: int) -> Float64[np.ndarray, "features components"]:
    """Directions of the largest variance, each divided by its deviation."""
    variance, directions = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    kept = np.argsort(variance)[::-1][:most]
    kept = kept[variance[kept] > _TINY]
    return directions[:, kept] / np.sqrt(variance[kept])


def _sigmoid(logits: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    return np.exp(-np.logaddexp(0, -logits))
