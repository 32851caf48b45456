"""Linear discriminant analysis with shrinkage, from labels alone or helped by images without a label.

Shapes: n images, m images without a label, p dimensions, k classes.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from model.head import FloatArray
from model.logits import LinearMap, softmax

POOL_WEIGHT = 0.6
POOL_ROUNDS = 4
SMALLEST_SHRINKAGE = 0.01


def fit_lda(
    coordinates: FloatArray, memberships: FloatArray, prior: FloatArray, shrinkage: float | None = None
) -> LinearMap:
    """Fit linear discriminant analysis to weighted, possibly soft, labels.

    The within-class covariance S is shrunk towards a multiple of the identity, (1 - s) S + s tr(S)/p I, with s
    as Ledoit and Wolf choose it ("A well-conditioned estimator for large-dimensional covariance matrices", 2004)
    unless ``shrinkage`` fixes it.

    Args:
        coordinates: rows, (n, p).
        memberships: how much each row belongs to each class, (n, k), from 0 to 1; every class needs some weight.
        prior: the classes' prior probabilities, (k,).
        shrinkage: s from 0 to 1; ``None`` for Ledoit and Wolf's.
    """
    totals = memberships.sum(axis=0)
    means = (memberships.T @ coordinates) / totals[:, None]
    row_weights = memberships.sum(axis=1)
    weighted = coordinates * row_weights[:, None]
    total = float(totals.sum())
    covariance = (coordinates.T @ weighted - (means.T * totals) @ means) / total
    scale = float(np.trace(covariance)) / len(covariance)
    if scale <= np.finfo(np.float32).tiny:
        # One row per class, or all rows alike: without any spread the classes' means alone decide.
        covariance, scale, shrinkage = np.zeros_like(covariance), 1.0, 1.0
    if shrinkage is None:
        shrinkage = _ledoit_wolf(coordinates, memberships, means, covariance)
    shrunk = (1 - shrinkage) * covariance
    shrunk[np.diag_indices_from(shrunk)] += max(shrinkage, SMALLEST_SHRINKAGE) * scale
    weight = scipy.linalg.solve(shrunk, means.T, assume_a="pos", check_finite=False)
    bias = np.log(prior) - 0.5 * np.einsum("kp,pk->k", means, weight)
    return LinearMap(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _ledoit_wolf(coordinates: FloatArray, memberships: FloatArray, means: FloatArray, covariance: FloatArray) -> float:
    """Return Ledoit and Wolf's shrinkage intensity of the within-class covariance of weighted rows."""
    n_dimensions = len(covariance)
    total = float(memberships.sum())
    squares = np.einsum("ij,ij->i", coordinates, coordinates)[:, None] + np.einsum("kp,kp->k", means, means)
    distances = np.maximum(squares - 2 * coordinates @ means.T, 0)
    fourth_moment = float((memberships * distances**2).sum()) / total
    squared_norm = float((covariance**2).sum())
    scale = float(np.trace(covariance)) / n_dimensions
    spread = squared_norm - n_dimensions * scale**2
    error = (fourth_moment - squared_norm) / total
    return float(np.clip(error / spread, 0, 1)) if spread > 0 else 1.0


def fit_pool_lda(
    coordinates: FloatArray,
    memberships: FloatArray,
    pool: FloatArray,
    prior: FloatArray,
    first_guess: FloatArray,
    shrinkage: float | None = None,
) -> LinearMap:
    """Fit linear discriminant analysis to labelled images and to pseudo-labels of the pool, in rounds.

    Each image of the pool counts with the probabilities the last round gave it, and the less the less certain
    they are: ``POOL_WEIGHT`` times one minus their entropy relative to the largest possible one.

    Args:
        coordinates: rows of the labelled images, (n, p).
        memberships: their labels, (n, k).
        pool: rows of images without a label, (m, p).
        prior: the classes' prior probabilities, (k,).
        first_guess: probabilities of the pool's images to begin with, (m, k).
        shrinkage: as in ``fit_lda``.
    """
    rows = np.concatenate([coordinates, pool])
    guess = first_guess
    for _ in range(POOL_ROUNDS):
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(guess > 0, guess * np.log(guess), 0).sum(axis=1)
        certainty = 1 - entropy / np.log(guess.shape[1])
        soft = guess * (POOL_WEIGHT * np.clip(certainty, 0, 1))[:, None]
        linear_map = fit_lda(rows, np.concatenate([memberships, soft]), prior, shrinkage)
        guess = softmax(linear_map.logits(pool))
    return linear_map
