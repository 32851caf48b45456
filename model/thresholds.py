"""From which probability on a class is suggested, where an image may have several; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.head import FloatArray

PRIOR_IMAGES = 30
THRESHOLD_RANGE = (0.2, 0.8)
SMALLEST_EXPECTED = 0.35
"""Whatever F1 is: by the rule for it, a head that knows nothing should suggest every class of every image."""


def fit_thresholds(probabilities: FloatArray, targets: NDArray[np.bool_]) -> tuple[float, ...]:
    """Return for each class the threshold with the best out-of-fold F1, shrunk towards what is to be expected.

    Of calibrated probabilities the best threshold is half of the F1 that it brings (Lipton, Elkan, Naryanaswamy:
    "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014); the F1 at 0.5, in the mean over classes, stands
    for that. A class with few positives says little: the threshold is (n fitted + n_prior expected) / (n + n_prior)
    with n the positives of the class.

    Args:
        probabilities: out-of-fold probabilities, (n, k).
        targets: booleans, (n, k).
    """
    expected = _expected_threshold(probabilities, targets)
    thresholds = []
    for column, truth in zip(probabilities.T, targets.T, strict=True):
        n_positives = int(truth.sum())
        fitted = _best_threshold(column, truth) if 0 < n_positives < len(truth) else expected
        thresholds.append((n_positives * fitted + PRIOR_IMAGES * expected) / (n_positives + PRIOR_IMAGES))
    return tuple(thresholds)


def _expected_threshold(probabilities: FloatArray, targets: NDArray[np.bool_]) -> float:
    """Return half of the F1 at 0.5, in the mean over classes that some images have and others do not."""
    mixed = targets.any(axis=0) & ~targets.all(axis=0)
    if not mixed.any():
        return 0.5
    claimed, truth = probabilities[:, mixed] >= 0.5, targets[:, mixed]
    f1 = 2 * (claimed & truth).sum(axis=0) / (claimed.sum(axis=0) + truth.sum(axis=0))
    return max(SMALLEST_EXPECTED, float(f1.mean()) / 2)


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
