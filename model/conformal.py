"""Which classes an image may have, so that the truth is left out of at most a share ``alpha`` of images.

Split conformal prediction with the simplest score, one minus the probability of the truth (Sadinle, Lei and Wasserman,
"Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019), on probabilities from outside each image's
fold (Vovk, "Cross-conformal predictors", 2015). Nothing is assumed of the probabilities: badly calibrated ones give
larger sets. Images must be exchangeable, labelled and later ones alike: images that an annotator chose, or that were
chosen for being hard, need not be.

- One class per image: the set holds the true class of at least 1 - ``alpha`` of images.
- Several: each class is judged by itself, apart for the images that have it and those that have not (label-conditional:
  Vovk, "Conditional validity of inductive conformal predictors", 2012). Of the images that have a class it is
  ``possible`` in at least 1 - ``alpha``; of those that have it not, it is ``certain`` in at most ``alpha``. What is
  possible but not certain is for a person to decide.

The guarantee is exact for probabilities that owe nothing to the images the threshold comes from. Out-of-fold ones come
from heads that share most labels, and new images meet a head that knows a fold more: Vovk proves no more than
1 - 2 ``alpha`` of folds together, and observes about 1 - ``alpha``. So do we, on photos, from 18 labels of six classes
on; with 12 the threshold hung on one image, and the truth was left out of a fifth of later ones. Hence
``SMALLEST_RANK``.

Shapes: n images, k classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.1
SMALLEST_RANK = 2
"""How many images must lie at or below a threshold."""

Probabilities = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]] | NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformal:
    """Thresholds of probability, from 0 to 1; without arguments nothing is ruled out.

    ``possible_from`` is the lowest probability of a class that is possible, one for all classes or one for each.
    ``certain_above``, for several classes per image, is what a class's probability must exceed to be certain; with
    one class per image it is ``None``, and a class is certain when no other is possible.
    """

    alpha: float = ALPHA
    possible_from: tuple[float, ...] = (0.0,)
    certain_above: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no share and no probability."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is a share between 0 and 1, not {self.alpha}")
        thresholds = (*self.possible_from, *(self.certain_above or ()))
        if not thresholds or not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(f"thresholds are probabilities, not {thresholds}")

    def prediction_set(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        """Return which classes are possible, (n, k), by probabilities, (n, k).

        With one class per image the most probable one always is, so that no set is empty.
        """
        possible: NDArray[np.bool_] = probabilities >= np.asarray(self.possible_from)
        if self.certain_above is None:
            possible[np.arange(len(possible)), probabilities.argmax(axis=1)] = True
        return possible

    def certain(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        """Return which classes are certain, (n, k), by probabilities, (n, k); these are possible too."""
        possible = self.prediction_set(probabilities)
        if self.certain_above is None:
            sure: NDArray[np.bool_] = possible.sum(axis=1, keepdims=True) == 1
        else:
            sure = probabilities > np.asarray(self.certain_above)
        return possible & sure


NOTHING_RULED_OUT = Conformal()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalReport:
    """How prediction sets do on ``n`` images; all zero when there was none.

    An answer is one image, where it has one class, and one class of one image, where it may have several.

    Attributes:
        coverage: share of answers whose truth is not ruled out, from 0 to 1: 1 - alpha or more is asked for.
        mean_size: classes that are possible, on average over images; fewer say more.
        share_decided: share of answers that leave no doubt, from 0 to 1: one class is possible; or the class is
            certain, or not possible.
    """

    n: int
    coverage: float
    mean_size: float
    share_decided: float


def fit_conformal(probabilities: Probabilities, targets: Targets, alpha: float = ALPHA) -> Conformal:
    """Return the thresholds for probabilities, (n, k), of images that they were not fitted on.

    Args:
        probabilities: rows sum to 1 where ``targets`` are class indices.
        targets: class indices, (n,), or booleans, (n, k), where an image may have several classes.
        alpha: the share of images whose truth may be left out. Fewer than 2 / alpha - 1 images rule nothing out.
    """
    if targets.ndim == 1:
        of_truth = probabilities[np.arange(len(targets)), targets]
        return Conformal(alpha=alpha, possible_from=(_lowest_kept(of_truth, alpha),))
    columns = list(zip(probabilities.T, targets.astype(np.bool_).T, strict=True))
    return Conformal(
        alpha=alpha,
        possible_from=tuple(_lowest_kept(column[truth], alpha) for column, truth in columns),
        certain_above=tuple(-_lowest_kept(-column[~truth], alpha, nothing=-1.0) for column, truth in columns),
    )


def cross_fitted_report(
    probabilities: Probabilities, targets: Targets, folds: NDArray[np.integer[Any]], alpha: float = ALPHA
) -> ConformalReport:
    """Report on sets of probabilities, (n, k), each with thresholds from the images of other ``folds``, (n,)."""
    multiple = targets.ndim == 2
    truth = targets.astype(np.bool_) if multiple else targets[:, None] == np.arange(probabilities.shape[1])
    possible, certain = np.zeros_like(truth), np.zeros_like(truth)
    for fold in np.unique(folds):
        here = folds == fold
        conformal = fit_conformal(probabilities[~here], targets[~here], alpha)
        possible[here] = conformal.prediction_set(probabilities[here])
        certain[here] = conformal.certain(probabilities[here])
    covered = np.where(truth, possible, ~certain) if multiple else (possible & truth).any(axis=1)
    decided = certain | ~possible if multiple else certain.any(axis=1)
    n_images = max(1, len(probabilities))
    return ConformalReport(
        n=len(probabilities),
        coverage=float(covered.sum() / max(1, covered.size)),
        mean_size=float(possible.sum() / n_images),
        share_decided=float(decided.sum() / max(1, decided.size)),
    )


def _lowest_kept(of_truth: Probabilities, alpha: float, nothing: float = 0.0) -> float:
    """Return the lowest probability that is kept: of n true ones, and one to come, at most a share ``alpha`` is lower.

    That is the floor(alpha (n + 1))-th smallest, or ``nothing`` where images are too few to say.
    """
    rank = math.floor(alpha * (len(of_truth) + 1))
    return nothing if rank < SMALLEST_RANK else float(np.partition(of_truth, rank - 1)[rank - 1])
