"""Linear discriminant analysis from sums over images, so that leaving some out, or adding a pool, costs little.

The covariance is shrunk towards a multiple of the identity (Friedman: "Regularized Discriminant Analysis", 1989)
as by a prior that weighs as much as ``PRIOR_IMAGES_PER_DIMENSION`` x p images: much while there are few, less and
less with more of them.

Shapes: n images, m images without a label, p dimensions, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from model.head import FloatArray
from model.logits import LinearMap, calibrated

PRIOR_IMAGES_PER_DIMENSION = 0.35
PRIOR_COUNT = 0.5
POOL_WEIGHT = 0.3
POOL_ROUNDS = 3
GUESS_TEMPERATURE = 2.0
"""What logits are divided by for guesses about the pool: nobody corrects these, and who is sure repeats its errors."""
SMALLEST_WITHIN_SHARE = 1e-3

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Weighted sums over images: ``total`` weight, ``sum`` (p,), ``second`` moment (p, p), and of the members of
    each class ``class_totals`` (k,) and ``class_sums`` (k, p).
    """

    total: float
    sum: Doubles
    second: Doubles
    class_totals: Doubles
    class_sums: Doubles

    def __add__(self, other: Moments) -> Moments:
        return self._combined(other, 1.0)

    def __sub__(self, other: Moments) -> Moments:
        return self._combined(other, -1.0)

    def _combined(self, other: Moments, sign: float) -> Moments:
        return Moments(
            total=self.total + sign * other.total,
            sum=self.sum + sign * other.sum,
            second=self.second + sign * other.second,
            class_totals=self.class_totals + sign * other.class_totals,
            class_sums=self.class_sums + sign * other.class_sums,
        )

    def of_classes(self, classes: NDArray[np.intp]) -> Moments:
        """Return the same sums with some of the classes only."""
        return Moments(
            total=self.total,
            sum=self.sum,
            second=self.second,
            class_totals=self.class_totals[classes],
            class_sums=self.class_sums[classes],
        )


def moments_of(coordinates: FloatArray, memberships: FloatArray, weights: FloatArray | None = None) -> Moments:
    """Sum over rows, (n, p), with memberships, (n, k), from 0 to 1, and weights, (n,), 1 without."""
    if weights is None:
        weights = np.ones(len(coordinates), np.float32)
        weighted = rooted = coordinates
    else:
        weighted = coordinates * weights[:, None]
        # A product with itself takes half the work.
        rooted = coordinates * np.sqrt(weights)[:, None]
    return Moments(
        total=float(weights.sum(dtype=np.float64)),
        sum=weighted.sum(axis=0, dtype=np.float64),
        second=(rooted.T @ rooted).astype(np.float64),
        class_totals=(weights @ memberships).astype(np.float64),
        class_sums=(memberships.T @ weighted).astype(np.float64),
    )


def fit_lda(moments: Moments, prior: Doubles) -> LinearMap:
    """Fit one class out of several; each class needs a member; ``prior`` are probabilities, (k,)."""
    means = moments.class_sums / moments.class_totals[:, None]
    covariance = (moments.second - (means.T * moments.class_totals) @ means) / moments.total
    weight = scipy.linalg.solve(_shrunk(covariance, moments), means.T, assume_a="pos", check_finite=False)
    bias = np.log(prior) - 0.5 * np.einsum("kp,pk->k", means, weight)
    return LinearMap(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def fit_one_vs_rest_lda(moments: Moments, prior: Doubles) -> LinearMap:
    """Fit each class against its absence; each needs a member and a non-member.

    ``prior`` are the probabilities of membership, (k,). The covariance within the two sides of a class is the
    total one less a matrix of rank one, so that one factorisation serves all classes (Sherman and Morrison).
    """
    mean = moments.sum / moments.total
    covariance = _shrunk(moments.second / moments.total - np.outer(mean, mean), moments)
    members = moments.class_sums / moments.class_totals[:, None]
    rest_totals = moments.total - moments.class_totals
    rest = (moments.sum - moments.class_sums) / rest_totals[:, None]
    differences = members - rest
    weight = scipy.linalg.solve(covariance, differences.T, assume_a="pos", check_finite=False)
    kept = 1 - _shrinkage(moments.total, len(covariance))
    between = kept * moments.class_totals * rest_totals / moments.total**2
    weight /= np.maximum(1 - between * np.einsum("kp,pk->k", differences, weight), SMALLEST_WITHIN_SHARE)
    bias = np.log(prior / (1 - prior)) - 0.5 * np.einsum("kp,pk->k", members + rest, weight)
    return LinearMap(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def prior_of(moments: Moments, *, multiple: bool) -> Doubles:
    """Return the smoothed shares, (k,), of the classes among the images."""
    counts = moments.class_totals + PRIOR_COUNT
    return counts / (moments.total + 2 * PRIOR_COUNT) if multiple else counts / counts.sum()


def fit_pool_lda(moments: Moments, pool: FloatArray, first_guess: FloatArray, *, multiple: bool) -> LinearMap:
    """Fit to labelled images and to pseudo-labels of images without one, in rounds.

    An image of the pool counts with the probabilities that the last round gave it, and the less the less certain
    they are: ``POOL_WEIGHT`` times one minus their entropy relative to the largest possible one (the mean over
    classes where an image may have several).

    Other ways to use a pool were tried on photos, on splits beside the benchmark's. Transductive information
    maximisation gains where a pool holds the classes as equally as the labels do, and loses far more where it does
    not; under shares estimated from the pool it gains nothing that lasts. Nor did transport to given shares, a
    Laplacian over neighbours, pseudo-labels for logistic regression, or pseudo-labels from the other half of the pool.

    Args:
        moments: of the labelled images.
        pool: rows of images without a label, (m, p).
        first_guess: probabilities to begin with, (m, k).
        multiple: whether an image may have several classes.
    """
    fit = fit_one_vs_rest_lda if multiple else fit_lda
    prior = prior_of(moments, multiple=multiple)
    guess = first_guess
    for _ in range(POOL_ROUNDS):
        weights = POOL_WEIGHT * _certainty(guess, multiple=multiple)
        linear_map = fit(moments + moments_of(pool, guess, weights), prior)
        guess = calibrated(linear_map.logits(pool), GUESS_TEMPERATURE, multiple=multiple)
    return linear_map


def _certainty(probabilities: FloatArray, *, multiple: bool) -> FloatArray:
    """Return one minus the normalised entropy of each row, (m,)."""
    if multiple:
        negative_entropy = (_plogp(probabilities) + _plogp(1 - probabilities)).mean(axis=1) / np.log(2)
    else:
        negative_entropy = _plogp(probabilities).sum(axis=1) / np.log(probabilities.shape[1])
    certainty: FloatArray = np.clip(1 + negative_entropy, 0, 1).astype(np.float32)
    return certainty


def _plogp(probabilities: FloatArray) -> FloatArray:
    terms: FloatArray = probabilities * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return terms


def _shrinkage(total: float, n_dimensions: int) -> float:
    prior_images = PRIOR_IMAGES_PER_DIMENSION * n_dimensions
    return prior_images / (prior_images + total)


def _shrunk(covariance: Doubles, moments: Moments) -> Doubles:
    """Return a positive definite mixture of the covariance and a multiple of the identity with the same trace."""
    n_dimensions = len(covariance)
    scale = float(np.trace(covariance)) / n_dimensions
    mean_square = float(np.trace(moments.second)) / moments.total / n_dimensions
    if scale <= SMALLEST_WITHIN_SHARE * mean_square:
        # One image per class, or all images alike: what is left is rounding, and the means alone decide.
        return np.eye(n_dimensions)
    shrinkage = _shrinkage(moments.total, n_dimensions)
    return (1 - shrinkage) * covariance + (shrinkage * scale) * np.eye(n_dimensions)
