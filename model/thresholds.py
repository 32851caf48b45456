"""From which probability on a class is suggested, where an image may have several; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.head import FloatArray

PRIOR_IMAGES = 30
THRESHOLD_RANGE = (0.2, 0.8)


def fit_thresholds(probabilities: FloatArray, targets: NDArray[np.bool_]) -> tuple[float, ...]:
    """Return for each class the threshold with the best F1 on out-of-fold probabilities, shrunk towards 0.5.

    A class with few positives says little: the threshold is (n fitted + n_prior 0.5) / (n + n_prior) with n the
    positives of the class.

    Args:
        probabilities: out-of-fold probabilities, (n, k).
        targets: booleans, (n, k).
    """
    thresholds = []
    for column, truth in zip(probabilities.T, targets.T, strict=True):
        n_positives = int(truth.sum())
        fitted = _best_threshold(column, truth) if 0 < n_positives < len(truth) else 0.5
        thresholds.append((n_positives * fitted + PRIOR_IMAGES * 0.5) / (n_positives + PRIOR_IMAGES))
    return tuple(thresholds)


def _best_threshold(probabilities: FloatArray, truth: NDArray[np.bool_]) -> float:
    """Return the middle between the two neighbouring probabilities that part best by F1."""
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(truth[order])
    claims = np.arange(1, len(ranked) + 1)
    f1 = 2 * hits / (claims + hits[-1])
    # Equal probabilities cannot be parted.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(np.clip((ranked[best] + below) / 2, *THRESHOLD_RANGE))
