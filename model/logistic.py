"""Logistic regression with an L2 penalty: one class out of several, or each class by itself.

Shapes: n images, p dimensions, k classes. The objective is scikit-learn's: C times the sum of the weighted
losses plus half the squared weights; the bias is free.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from model.head import FloatArray
from model.logits import LinearMap, sigmoid, softmax

MAX_ITERATIONS = 60
GRADIENT_TOLERANCE = 1e-5

Loss = Callable[[FloatArray, FloatArray], tuple[float, FloatArray]]
"""Logits (n, k) and targets (n, k) to the sum of the losses and its gradient by the logits."""


def fit_multinomial(coordinates: FloatArray, memberships: FloatArray, inverse_penalty: float) -> LinearMap:
    """Fit one class out of several; ``memberships``, (n, k), are one-hot rows."""
    return _fit(coordinates, memberships, inverse_penalty, _cross_entropy)


def fit_one_vs_rest(coordinates: FloatArray, targets: NDArray[np.bool_], inverse_penalty: float) -> LinearMap:
    """Fit each class by itself on ``targets``, (n, k).

    A class with few positives, or few negatives, would be drowned: its scarcer side is weighted up by the square
    root of the ratio, and the bias is corrected afterwards so that probabilities stay those of the images seen.
    A class with one side only gets a constant logit, from its count and one image of the other side.
    """
    n_images = len(targets)
    positives = targets.sum(axis=0)
    mixed = (positives > 0) & (positives < n_images)
    weight = np.zeros((coordinates.shape[1], targets.shape[1]), np.float32)
    bias = np.log((positives + 0.5) / (n_images - positives + 0.5)).astype(np.float32)
    if mixed.any():
        ratio = np.sqrt((n_images - positives[mixed]) / positives[mixed]).astype(np.float32)
        scale = np.sqrt(ratio)
        row_weights = np.where(targets[:, mixed], scale, 1 / scale)

        def loss(logits: FloatArray, sides: FloatArray) -> tuple[float, FloatArray]:
            return _binary_cross_entropy(logits, sides, row_weights)

        fitted = _fit(coordinates, targets[:, mixed].astype(np.float32), inverse_penalty, loss)
        weight[:, mixed] = fitted.weight
        bias[mixed] = fitted.bias - np.log(ratio)
    return LinearMap(weight=weight, bias=bias)


def _fit(coordinates: FloatArray, targets: FloatArray, inverse_penalty: float, loss: Loss) -> LinearMap:
    n_dimensions, n_classes = coordinates.shape[1], targets.shape[1]
    penalty = 1 / inverse_penalty

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = _split(parameters, n_dimensions, n_classes)
        total, by_logits = loss(coordinates @ weight + bias, targets)
        gradient = np.empty((n_dimensions + 1, n_classes))
        gradient[:-1] = coordinates.T @ by_logits + penalty * weight
        gradient[-1] = by_logits.sum(axis=0)
        scale = 1 / len(coordinates)
        return scale * (total + 0.5 * penalty * float((weight**2).sum())), scale * gradient.ravel()

    result = minimize(
        objective,
        np.zeros((n_dimensions + 1) * n_classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "maxcor": 10},
    )
    weight, bias = _split(result.x, n_dimensions, n_classes)
    return LinearMap(weight=weight, bias=bias)


def _split(parameters: NDArray[np.float64], n_dimensions: int, n_classes: int) -> tuple[FloatArray, FloatArray]:
    matrix = parameters.reshape(n_dimensions + 1, n_classes).astype(np.float32)
    return matrix[:-1], matrix[-1]


def _cross_entropy(logits: FloatArray, memberships: FloatArray) -> tuple[float, FloatArray]:
    probabilities = softmax(logits)
    likely = np.maximum((probabilities * memberships).sum(axis=1), np.finfo(np.float32).tiny)
    return -float(np.log(likely).sum(dtype=np.float64)), probabilities - memberships


def _binary_cross_entropy(logits: FloatArray, targets: FloatArray, weights: FloatArray) -> tuple[float, FloatArray]:
    losses = np.logaddexp(0, logits) - targets * logits
    return float((weights * losses).sum(dtype=np.float64)), weights * (sigmoid(logits) - targets)
