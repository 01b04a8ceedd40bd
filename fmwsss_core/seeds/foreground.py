"""Foreground or background of a superpixel, learned over the whole dataset from the seeds themselves (ours; M5.5).

One image's maps say which of its superpixels is most like a class, and not whether it is one: min-max puts a foreground
and a background into every image. What sky, grass and walls look like is the same in many images. So a linear model of
what superpixels look like is fitted to the seeds of all other images, each weighted by how clear it was, and its word
counts as much as that of the map. No ground truth has a part in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import optimize

from fmwsss.core.errors import InputError
from fmwsss.core.superpixels.masks import Superpixels

NUM_FOLDS = 5
NUM_COMPONENTS = 192
PENALTY = 100.0
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
            features: of each superpixel (`pooled_tokens`).
            margins: as `foreground_margins` gives them.
        """
        return margins / self.margin_std + self.logits(features) / self.logit_std


@dataclass(frozen=True, eq=False)
class FoldModels:
    """The models of all folds: an image is judged by the one that was not fitted to it.

    Attributes:
        models: by fold.
        is_fitted: of each; where the superpixels of the other folds teach nothing, the maps decide alone.
    """

    models: tuple[ForegroundModel, ...]
    is_fitted: tuple[bool, ...]

    def decide(
        self,
        image_id: str,
        features: Float[np.ndarray, "superpixels features"],
        margins: Float[np.ndarray, " superpixels"],
    ) -> Float64[np.ndarray, " superpixels"]:
        """See `ForegroundModel.decide`, of the model of the image's fold.

        Args:
            image_id: decides the fold.
            features: of the image's superpixels.
            margins: of the maps, for each superpixel.

        Returns:
            As there.
        """
        (fold,) = fold_of([image_id], len(self.models))
        return self.models[fold].decide(features, margins) if self.is_fitted[fold] else margins.astype(np.float64)

    def to_bytes(self) -> bytes:
        """As a safetensors file; equal models, equal bytes."""
        columns = {
            "weight": np.stack([model.weight for model in self.models]),
            "bias": np.array([model.bias for model in self.models]),
            "margin_std": np.array([model.margin_std for model in self.models]),
            "logit_std": np.array([model.logit_std for model in self.models]),
            "is_fitted": np.array(self.is_fitted, dtype=np.uint8),
        }
        return save(columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> FoldModels:
        """The models of `to_bytes`.

        Raises:
            InputError: not such a file.
        """
        try:
            columns = load(data)
            rows = [columns[name] for name in ("weight", "bias", "margin_std", "logit_std", "is_fitted")]
        except (SafetensorError, KeyError) as error:
            raise InputError(f"this is no model of foreground superpixels: {error}") from None
        models = [ForegroundModel(weight, *map(float, numbers)) for weight, *numbers in zip(*rows[:4], strict=True)]
        return cls(tuple(models), tuple(map(bool, rows[4])))


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
) -> FoldModels:
    """For each fold a model of all other folds: no superpixel is judged by a model that was fitted to its own seed.

    Args:
        features: mean tokens of superpixels.
        margins: of their seeds.
        fold: 0 to `num_folds` - 1; all superpixels of one image in one fold (`fold_of`).
        num_folds: how many models.
    """
    models, is_fitted = [], []
    for number in range(num_folds):
        others = fold != number
        foreground = margins[others] > 0
        is_fitted.append(bool(foreground.any() and not foreground.all()))
        if is_fitted[-1]:
            models.append(fit_foreground(features[others], margins[others]))
        else:
            models.append(ForegroundModel(np.zeros(features.shape[1]), 0.0, 1.0, 1.0))
    return FoldModels(tuple(models), tuple(is_fitted))


def fold_of(image_ids: Sequence[str], num_folds: int = NUM_FOLDS) -> Int[np.ndarray, " images"]:
    """The fold of each image: by its id alone, so that neither shards nor other images have a part in it.

    Args:
        image_ids: of the images.
        num_folds: of which each gets one, from 0.
    """
    digests = [hashlib.sha256(image_id.encode()).digest()[:8] for image_id in image_ids]
    return np.array([int.from_bytes(digest, "big") % num_folds for digest in digests], dtype=np.int64)


def evenly(counts: Sequence[int], most: int) -> list[int]:
    """Which images a model is fitted to: all, or every second, third, ... so that they have `most` superpixels or so.

    Args:
        counts: superpixels of each image, in an order that does not depend on shards.
        most: superpixels that a fit may take.
    """
    step = max(1, -(-sum(counts) // most))
    return list(range(0, len(counts), step))


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
