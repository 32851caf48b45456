"""The ways to fit a linear classifier among which cross-validation chooses.

Shapes: n images with a label, m without, p dimensions, k classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.discriminant import GUESS_TEMPERATURE, Moments, fit_lda, fit_one_vs_rest_lda, fit_pool_lda, prior_of
from model.head import FloatArray
from model.logistic import fit_multinomial, fit_one_vs_rest
from model.logits import LinearMap, calibrated

INVERSE_PENALTY = 100.0
INVERSE_PENALTY_MULTIPLE = 1000.0
PRIOR_COUNT = 0.5
MAX_LOGISTIC_ROWS = 1000
LOGISTIC_SHARE = 0.5
FULL_SHARE_LABELS = 25
"""Up to how many labels per class logistic regression has its full share in the average with LDA."""


def fit_single_label(
    coordinates: FloatArray, targets: NDArray[np.intp], moments: Moments, pool: FloatArray
) -> dict[str, LinearMap]:
    """Fit each method for one class per image, by name, the one to expect most of first.

    "pool", only where there is one, is helped by it; "labelled", the average of LDA and logistic regression, sees
    labelled images alone.

    Args:
        coordinates: rows of labelled images, (n, p); n may be 0.
        targets: their class indices, (n,).
        moments: of these rows and classes; classes without a label get a low, finite logit.
        pool: rows of images without a label, (m, p).
    """
    present = np.flatnonzero(moments.class_totals > 0)
    if len(present) < 2:
        constant = _constant(coordinates.shape[1], len(present))
        fitted = {"pool": constant, "labelled": constant} if len(pool) else {"labelled": constant}
    else:
        kept = moments.of_classes(present)
        discriminant = fit_lda(kept, prior_of(kept, multiple=False))
        logistic = _fit_logistic(coordinates, np.searchsorted(present, targets))
        fitted = _combinations(coordinates, kept, pool, discriminant, logistic, multiple=False)
    return {name: _widened(linear_map, present, moments.class_totals) for name, linear_map in fitted.items()}


def fit_multi_label(
    coordinates: FloatArray, targets: NDArray[np.bool_], moments: Moments, pool: FloatArray
) -> dict[str, LinearMap]:
    """Fit each method, as in ``fit_single_label``, for several classes per image.

    A class that no labelled image has, or that all have, gets a constant logit.

    Args:
        coordinates: rows of labelled images, (n, p); n may be 0.
        targets: which classes they have, (n, k).
        moments: of these rows and classes.
        pool: rows of images without a label, (m, p).
    """
    counts = moments.class_totals
    mixed = np.flatnonzero((counts > 0) & (counts < moments.total))
    if len(mixed):
        kept = moments.of_classes(mixed)
        rows = np.linspace(0, len(targets) - 1, min(len(targets), MAX_LOGISTIC_ROWS)).astype(np.intp)
        discriminant = fit_one_vs_rest_lda(kept, prior_of(kept, multiple=True))
        logistic = fit_one_vs_rest(coordinates[rows], targets[rows][:, mixed], INVERSE_PENALTY_MULTIPLE)
        fitted = _combinations(coordinates, kept, pool, discriminant, logistic, multiple=True)
    else:
        constant = _constant(coordinates.shape[1], 0)
        fitted = {"pool": constant, "labelled": constant} if len(pool) else {"labelled": constant}
    bias = np.log((counts + PRIOR_COUNT) / (moments.total - counts + PRIOR_COUNT))
    return {name: _completed(linear_map, mixed, bias) for name, linear_map in fitted.items()}


def _combinations(
    coordinates: FloatArray,
    moments: Moments,
    pool: FloatArray,
    discriminant: LinearMap,
    logistic: LinearMap,
    *,
    multiple: bool,
) -> dict[str, LinearMap]:
    labelled = _average(discriminant, logistic, coordinates, _logistic_share(moments))
    if not len(pool):
        return {"labelled": labelled}
    guesses = [calibrated(each.logits(pool), GUESS_TEMPERATURE, multiple=multiple) for each in (discriminant, logistic)]
    helped = fit_pool_lda(moments, pool, np.mean(guesses, axis=0, dtype=np.float32), multiple=multiple)
    return {"pool": helped, "labelled": labelled}


def _fit_logistic(coordinates: FloatArray, targets: NDArray[np.intp]) -> LinearMap:
    """Fit logistic regression on at most ``MAX_LOGISTIC_ROWS`` images, rare classes first.

    The bias is corrected for classes that were thinned (King and Zeng: "Logistic Regression in Rare Events
    Data", 2001).
    """
    rows = _balanced(targets, MAX_LOGISTIC_ROWS)
    kept = targets[rows]
    fitted = fit_multinomial(coordinates[rows], np.eye(targets.max() + 1, dtype=np.float32)[kept], INVERSE_PENALTY)
    thinned = np.bincount(targets) / np.bincount(kept)
    return LinearMap(weight=fitted.weight, bias=fitted.bias + np.log(thinned).astype(np.float32))


def _balanced(targets: NDArray[np.intp], max_rows: int) -> NDArray[np.intp]:
    """Return row indices that take each class in turn until ``max_rows`` are reached."""
    if len(targets) <= max_rows:
        return np.arange(len(targets))
    by_class = np.argsort(targets, kind="stable")
    counts = np.bincount(targets)
    turns = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[np.argsort(turns, kind="stable")[: max(max_rows, len(counts))]])


def _logistic_share(moments: Moments) -> float:
    """Return the weight of logistic regression beside LDA, from 0 to ``LOGISTIC_SHARE``.

    LDA knows the covariance the better the more labels there are, and then needs less help: on photos the two alone
    were level at 10 labels per class, and LDA ahead from 50 on.
    """
    labels_per_class = moments.total / len(moments.class_totals)
    return LOGISTIC_SHARE * min(1.0, FULL_SHARE_LABELS / labels_per_class)


def _average(first: LinearMap, second: LinearMap, rows: FloatArray, share: float) -> LinearMap:
    """Return the mean of two maps after the second's logits were given the spread that the first's have on rows.

    ``share`` is the weight of the second, from 0 to 1.
    """
    spread = second.spread(rows)
    ratio = first.spread(rows) / spread if spread > 0 else 1.0
    return LinearMap(
        weight=((1 - share) * first.weight + share * ratio * second.weight).astype(np.float32),
        bias=((1 - share) * first.bias + share * ratio * second.bias).astype(np.float32),
    )


def _constant(n_dimensions: int, n_classes: int) -> LinearMap:
    return LinearMap(weight=np.zeros((n_dimensions, n_classes), np.float32), bias=np.zeros(n_classes, np.float32))


def _widened(linear_map: LinearMap, present: NDArray[np.intp], counts: NDArray[np.float64]) -> LinearMap:
    """Return a map to all classes from one to those ``present``.

    A class without a label gets the mean logit of the others, which is far below the largest, lowered by how
    much rarer it is: finite, so that one such image does not ruin every figure.
    """
    widened = _constant(len(linear_map.weight), len(counts))
    widened.weight[:, present] = linear_map.weight
    widened.bias[present] = linear_map.bias
    absent = np.setdiff1d(np.arange(len(counts)), present)
    if len(absent) and len(present):
        typical = counts[present].mean()
        widened.weight[:, absent] = linear_map.weight.mean(axis=1, keepdims=True)
        widened.bias[absent] = linear_map.bias.mean() + np.log(PRIOR_COUNT / (typical + PRIOR_COUNT))
    return widened


def _completed(linear_map: LinearMap, mixed: NDArray[np.intp], bias: NDArray[np.float64]) -> LinearMap:
    """Return a map to all classes: constant, with ``bias``, but for those in ``mixed``."""
    completed = LinearMap(
        weight=np.zeros((len(linear_map.weight), len(bias)), np.float32), bias=bias.astype(np.float32)
    )
    completed.weight[:, mixed] = linear_map.weight
    completed.bias[mixed] = linear_map.bias
    return completed
