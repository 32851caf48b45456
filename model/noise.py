"""Labels that are probably wrong, by confident learning; numpy only.

Northcutt, Jiang and Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021. An image counts as
confidently of a class when the class's probability reaches the mean probability that the class has among images with
its label; so a class that the model is timid about is not held to a higher standard than it can meet. A label is
suspect when the image is confidently of another class and not most probably of its own. Of few images about which a
model is alike sure, half lie below the mean however sure that is; so one is also suspect where its label is improbable
by itself.

Shapes: n labelled images, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.evaluation import Probabilities, Targets

TOLERANCE = 1e-6
SMALLEST_THRESHOLD = 2e-6
UNREACHABLE = 2.0
IMPROBABLE = 0.1

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A label to look at again.

    Attributes:
        row: of the image among those given.
        given: indices of the classes that its label has; one where an image has one class.
        suggested: indices of the classes that it should have instead.
        probability: 0 to 1, of what is suggested, as a whole.
        confidence: probability, 0 to 1, that the label is wrong: one minus that of the given class; where an image
            may have several classes, the largest such value among those in dispute.
    """

    row: int
    given: tuple[int, ...]
    suggested: tuple[int, ...]
    probability: float
    confidence: float


def suspects(probabilities: Probabilities, targets: Targets) -> tuple[Suspect, ...]:
    """Return the suspect labels, the most probably wrong first.

    Args:
        probabilities: (n, k), each made by a model that did not learn from this image's label
            (``model.learned.OutOfFold``).
        targets: the labels: class indices, (n,), or booleans, (n, k), where an image may have several classes; then
            each class is judged by itself.

    Raises:
        ValueError: the shapes do not fit.
    """
    expected = probabilities.shape[: targets.ndim]
    if probabilities.ndim != 2 or targets.shape != expected:
        raise ValueError(f"targets of shape {targets.shape} do not fit probabilities of shape {probabilities.shape}")
    wide = probabilities.astype(np.float64)
    found = _of_sets(wide, targets.astype(np.bool_)) if targets.ndim == 2 else _of_classes(wide, targets)
    return tuple(sorted(found, key=lambda suspect: -suspect.confidence))


def _of_classes(probabilities: Doubles, targets: Targets) -> list[Suspect]:
    likeliest = probabilities.argmax(axis=1)
    return [
        Suspect(
            row=row,
            given=(int(targets[row]),),
            suggested=(int(likeliest[row]),),
            probability=float(probabilities[row, likeliest[row]]),
            confidence=float(1 - probabilities[row, targets[row]]),
        )
        for row in np.flatnonzero(_suspected(probabilities, targets)).tolist()
    ]


def _of_sets(probabilities: Doubles, targets: NDArray[np.bool_]) -> list[Suspect]:
    disputed = np.empty_like(targets)
    for column, labels in enumerate(targets.T.astype(np.intp)):
        present = probabilities[:, column]
        disputed[:, column] = _suspected(np.stack([1 - present, present], axis=1), labels)
    suggested = targets ^ disputed
    likelihoods = np.where(suggested, probabilities, 1 - probabilities).prod(axis=1)
    wrong = np.where(disputed, np.where(targets, 1 - probabilities, probabilities), 0)
    return [
        Suspect(
            row=row,
            given=tuple(np.flatnonzero(targets[row]).tolist()),
            suggested=tuple(np.flatnonzero(suggested[row]).tolist()),
            probability=float(likelihoods[row]),
            confidence=float(wrong[row].max()),
        )
        for row in np.flatnonzero(disputed.any(axis=1)).tolist()
    ]


def _suspected(probabilities: Doubles, targets: Targets) -> NDArray[np.bool_]:
    """Return which labels, (n,), are suspect: not the likeliest, and improbable or confidently of another class."""
    n_classes = probabilities.shape[1]
    counts = np.bincount(targets, minlength=n_classes)
    own = probabilities[np.arange(len(targets)), targets]
    means = np.bincount(targets, own, minlength=n_classes) / np.maximum(counts, 1)
    thresholds = np.where(counts, np.maximum(means, SMALLEST_THRESHOLD), UNREACHABLE)
    confident = np.where(probabilities >= thresholds - TOLERANCE, probabilities, 0)
    elsewhere = (confident.max(axis=1) > 0) & (confident.argmax(axis=1) != targets)
    suspected: NDArray[np.bool_] = (elsewhere | (own <= IMPROBABLE)) & (own < probabilities.max(axis=1) - TOLERANCE)
    return suspected
