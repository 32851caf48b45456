"""The ways to fit a linear classifier among which cross-validation chooses.

Shapes: n images with a label, m without, p dimensions, k classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.discriminant import fit_lda, fit_pool_lda
from model.head import FloatArray
from model.logistic import fit_multinomial, fit_one_vs_rest
from model.logits import LinearMap, softmax

INVERSE_PENALTY = 100.0
PRIOR_COUNT = 0.5


def fit_single_label(
    coordinates: FloatArray, targets: NDArray[np.intp], n_classes: int, pool: FloatArray
) -> dict[str, LinearMap]:
    """Fit each method for one class per image, by name; ``pool`` helps some of them when it is not empty.

    Args:
        coordinates: rows of labelled images, (n, p); n may be 0.
        targets: their class indices, (n,).
        n_classes: k; classes without a label get a low, finite logit.
        pool: rows of images without a label, (m, p).
    """
    counts = np.bincount(targets, minlength=n_classes)
    present = np.flatnonzero(counts)
    if len(present) < 2:
        fitted = {"labelled": _constant(coordinates.shape[1], len(present))}
        if len(pool):
            fitted["pool"] = fitted["labelled"]
    else:
        fitted = _fit_present(coordinates, np.searchsorted(present, targets), pool)
    return {name: _widened(linear_map, present, counts) for name, linear_map in fitted.items()}


def fit_multi_label(
    coordinates: FloatArray,
    targets: NDArray[np.bool_],
    pool: FloatArray,  # noqa: ARG001
) -> dict[str, LinearMap]:
    """Fit each method for several classes per image, by name; ``targets`` are (n, k)."""
    return {"labelled": fit_one_vs_rest(coordinates, targets, INVERSE_PENALTY)}


def _fit_present(coordinates: FloatArray, targets: NDArray[np.intp], pool: FloatArray) -> dict[str, LinearMap]:
    memberships = np.eye(targets.max() + 1, dtype=np.float32)[targets]
    prior = (memberships.sum(axis=0) + PRIOR_COUNT) / (len(targets) + PRIOR_COUNT * memberships.shape[1])
    logistic = fit_multinomial(coordinates, memberships, INVERSE_PENALTY)
    discriminant = fit_lda(coordinates, memberships, prior)
    fitted = {
        "labelled": LinearMap(
            weight=(logistic.weight + discriminant.weight) / 2, bias=(logistic.bias + discriminant.bias) / 2
        )
    }
    if len(pool):
        guess = (softmax(logistic.logits(pool)) + softmax(discriminant.logits(pool))) / 2
        fitted["pool"] = fit_pool_lda(coordinates, memberships, pool, prior, guess)
    return fitted


def _constant(n_dimensions: int, n_classes: int) -> LinearMap:
    return LinearMap(weight=np.zeros((n_dimensions, n_classes), np.float32), bias=np.zeros(n_classes, np.float32))


def _widened(linear_map: LinearMap, present: NDArray[np.intp], counts: NDArray[np.intp]) -> LinearMap:
    """Return a map to all classes from one to those ``present``.

    A class without a label gets the mean logit of the others, which is far below the largest, lowered by how
    much rarer it is: finite, so that one such image does not ruin every figure.
    """
    widened = _constant(len(linear_map.weight), len(counts))
    widened.weight[:, present] = linear_map.weight
    widened.bias[present] = linear_map.bias
    absent = np.flatnonzero(counts == 0)
    if len(absent) and len(present):
        typical = counts[present].mean()
        widened.weight[:, absent] = linear_map.weight.mean(axis=1, keepdims=True)
        widened.bias[absent] = linear_map.bias.mean() + np.log(PRIOR_COUNT / (typical + PRIOR_COUNT))
    return widened
