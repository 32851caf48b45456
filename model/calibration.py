"""Probabilities that mean what they say: temperature scaling, and how to see whether it worked.

Temperature scaling divides all logits by one number T > 0 (Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern
Neural Networks", 2017). T must be fitted on logits of images that the head was not fitted on. A few dozen of them
say little about T, and where all are right they ask for T = 0; so T is the maximum a posteriori under a prior of
log T: normal around what is expected, with exponential tails (the density whose negative logarithm is the loss of
Huber, "Robust Estimation of a Location Parameter", 1964), so that labels that mean nothing, which ask for a T far
above what is expected, are believed. Heads that see more labels are less over-confident, and the final head sees a
fold more than those that T was fitted on: T is lowered by ``FINAL_HEAD_GAIN`` / sqrt(n), at most to
``SMALLEST_FINAL_SHARE``.

What to expect of T follows from the logits themselves and how many labels taught them: on photos it is their spread
divided by the fourth root of the labels per class, for heads with and without a pool, with one class per image and
with several. The spread is the standard deviation of an image's logits over its classes; a class that is there or not
counts as two, with logits z/2 and -z/2.

The constants were found on photos, with 5 to 50 labels per class and two backbones.

Shapes: n images, k classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.logits import calibrated

PRECISION = 150.0
"""One over the variance of log T near what is expected."""
LARGEST_PULL = 10.0
"""The slope of the prior's negative logarithm in its tails."""
LABELS_PER_CLASS_RANGE = (1, 50)
"""Within it more labels lower what is expected of T; beyond it they say enough themselves."""
TYPICAL_TEMPERATURE = 5.0
"""What is expected without a look at logits."""
FINAL_HEAD_GAIN = 1.5
SMALLEST_FINAL_SHARE = 0.75
LOG_TEMPERATURE_RANGE = (-3.0, 7.0)
N_BISECTIONS = 14
MAX_TEMPERATURE_IMAGES = 1500
"""One number is known well enough from every so-many-th of more images."""
N_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Confidence against accuracy in equally wide bins of confidence; empty bins have zeros.

    ``confidences`` are mean confidences, ``accuracies`` shares of right answers, both from 0 to 1, ``counts``
    answers, each of length n_bins.
    """

    confidences: tuple[float, ...]
    accuracies: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def ece(self) -> float:
        """The expected calibration error, from 0 (best) to 1: the mean of |accuracy - confidence| over answers."""
        bins = zip(self.confidences, self.accuracies, self.counts, strict=True)
        gaps = sum(count * abs(accuracy - confidence) for confidence, accuracy, count in bins)
        return gaps / max(1, sum(self.counts))


def fit_temperature(
    logits: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]] | NDArray[np.bool_],
    expected: float | None = None,
    *,
    labels_per_image: float = 1.0,
) -> float:
    """Return T for out-of-fold logits, (n, k): what is expected of it when n is 0.

    Args:
        logits: of images that the head they come from was not fitted on.
        targets: class indices, (n,), or booleans, (n, k), where an image may have several classes.
        expected: of T, without a look at the images; ``expected_temperature`` without.
        labels_per_image: labels that taught heads for each image here: more than one where not all may judge.
    """
    multiple = targets.ndim == 2
    if expected is None:
        expected = expected_temperature(logits, len(logits) * labels_per_image, multiple=multiple)
    expected_log = math.log(expected)
    step = -(-max(1, len(logits)) // MAX_TEMPERATURE_IMAGES)
    logits, targets = logits[::step], targets[::step]
    wide = logits.astype(np.float64)
    if not multiple:
        wide -= wide.max(axis=1, keepdims=True)
    truth = targets if multiple else targets[:, None] == np.arange(logits.shape[1])
    true_sum = float(wide[truth].sum())
    coldest, hottest = LOG_TEMPERATURE_RANGE
    for _ in range(N_BISECTIONS):
        middle = (coldest + hottest) / 2
        # The slope of the log loss by 1/T: what the probabilities expect of the logits, less what is true.
        probabilities = calibrated(wide, float(np.exp(middle)), multiple=multiple)
        slope = float((probabilities * wide).sum(dtype=np.float64)) - true_sum
        if slope * np.exp(-middle) > _pull(middle - expected_log):
            coldest = middle
        else:
            hottest = middle
    return float(np.exp((coldest + hottest) / 2))


def _pull(distance: float) -> float:
    """Return the slope of the negative log prior at a distance from the expected log T."""
    return min(max(PRECISION * distance, -LARGEST_PULL), LARGEST_PULL)


def expected_temperature(logits: NDArray[np.floating[Any]], n_labels: float, *, multiple: bool) -> float:
    """Return what T is expected to be for out-of-fold logits, (n, k), of heads that so many labels taught."""
    if not len(logits):
        return TYPICAL_TEMPERATURE
    wide = logits.astype(np.float64)
    spread = float(np.abs(wide).mean()) / 2 if multiple else float(wide.std(axis=1).mean())
    fewest, most = LABELS_PER_CLASS_RANGE
    expected = spread / math.pow(min(max(n_labels / logits.shape[1], fewest), most), 0.25)
    return min(max(expected, math.exp(LOG_TEMPERATURE_RANGE[0])), math.exp(LOG_TEMPERATURE_RANGE[1]))


def final_temperature(temperature: float, n_images: int) -> float:
    """Return T for the head on all labels from the T that fits out-of-fold logits of ``n_images``."""
    return temperature * max(SMALLEST_FINAL_SHARE, 1 - FINAL_HEAD_GAIN / math.sqrt(max(1, n_images)))


def reliability(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]] | NDArray[np.bool_],
    n_bins: int = N_BINS,
) -> Reliability:
    """Return the reliability diagram and the expected calibration error of probabilities, (n, k).

    ECE as Guo et al. (2017) define it: answers are put into ``n_bins`` equally wide bins ((i-1)/n, i/n] of their
    confidence, and |accuracy - confidence| of the bins is averaged, weighted by their answers. With one class per
    image (targets (n,)) there is one answer per image, its most probable class. With several (targets (n, k))
    each class of each image is an answer: confidence is the probability of the class, accuracy whether it is there.
    """
    if targets.ndim == 2:
        confidences, right = probabilities.ravel().astype(np.float64), targets.ravel().astype(np.float64)
    else:
        confidences = probabilities.max(axis=1).astype(np.float64)
        right = (probabilities.argmax(axis=1) == targets).astype(np.float64)
    bins = np.clip(np.ceil(confidences * n_bins).astype(np.intp) - 1, 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.maximum(counts, 1)
    mean_confidences = np.bincount(bins, confidences, n_bins) / filled
    accuracies = np.bincount(bins, right, n_bins) / filled
    return Reliability(
        confidences=tuple(mean_confidences.tolist()),
        accuracies=tuple(accuracies.tolist()),
        counts=tuple(counts.tolist()),
    )
