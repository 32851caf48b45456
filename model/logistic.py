"""Logistic regression with an L2 penalty: one class out of several, or each class by itself.

Shapes: n images, p dimensions, k classes. The objective is scikit-learn's: C times the sum of the
losses plus half the squared weights; the bias is free.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from model.head import FloatArray
from model.logits import LinearMap, sigmoid, softmax

MAX_ITERATIONS = 30
MIN_ITERATIONS = 5
MAX_ITERATION_CLASSES = 3000
GRADIENT_TOLERANCE = 1e-5
PRIOR_COUNT = 0.5

Loss = Callable[[FloatArray, FloatArray], tuple[float, FloatArray]]
"""Logits (n, k) and targets (n, k) to the sum of the losses and its gradient by the logits."""


def fit_multinomial(coordinates: FloatArray, memberships: FloatArray, inverse_penalty: float) -> LinearMap:
    """Fit one class out of several; ``memberships``, (n, k), are one-hot rows."""
    return _fit(coordinates, memberships, inverse_penalty, _cross_entropy, np.zeros(memberships.shape[1]))


def fit_one_vs_rest(coordinates: FloatArray, targets: NDArray[np.bool_], inverse_penalty: float) -> LinearMap:
    """Fit each class by itself on ``targets``, (n, k)."""
    # With very many classes the few steps that there are would go into saying that each is rare.
    counts = targets.sum(axis=0)
    first_bias = np.log((counts + PRIOR_COUNT) / (len(targets) - counts + PRIOR_COUNT))
    return _fit(coordinates, targets.astype(np.float32), inverse_penalty, _binary_cross_entropy, first_bias)


def _fit(
    coordinates: FloatArray, targets: FloatArray, inverse_penalty: float, loss: Loss, first_bias: NDArray[np.float64]
) -> LinearMap:
    n_images, n_dimensions = coordinates.shape
    if n_images < n_dimensions:
        # No step leaves the span of the rows: its gradient is a sum of them, and so is the penalty's.
        basis = np.linalg.qr(coordinates.T).Q
        within = _fit(coordinates @ basis, targets, inverse_penalty, loss, first_bias)
        return LinearMap(weight=basis @ within.weight, bias=within.bias)
    n_classes = targets.shape[1]
    # An iteration costs in proportion to the classes; with very many of them the first few steps have to do.
    n_iterations = max(MIN_ITERATIONS, min(MAX_ITERATIONS, MAX_ITERATION_CLASSES // n_classes))
    penalty = 1 / inverse_penalty

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = _split(parameters, n_dimensions, n_classes)
        total, by_logits = loss(coordinates @ weight + bias, targets)
        gradient = np.empty((n_dimensions + 1, n_classes))
        gradient[:-1] = coordinates.T @ by_logits + penalty * weight
        gradient[-1] = by_logits.sum(axis=0)
        scale = 1 / n_images
        return scale * (total + 0.5 * penalty * float((weight**2).sum())), scale * gradient.ravel()

    result = minimize(
        objective,
        np.concatenate([np.zeros(n_dimensions * n_classes), first_bias]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": n_iterations, "gtol": GRADIENT_TOLERANCE, "maxcor": 10},
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


def _binary_cross_entropy(logits: FloatArray, targets: FloatArray) -> tuple[float, FloatArray]:
    losses = np.logaddexp(0, logits) - targets * logits
    return float(losses.sum(dtype=np.float64)), sigmoid(logits) - targets
