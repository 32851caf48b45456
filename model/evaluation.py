"""How good probabilities are: per class, over all classes, and against those of another version.

Shapes: n images, k classes. Targets are class indices, (n,), where an image has one class, and booleans, (n, k),
where it may have several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.calibration import Reliability, reliability

SMALLEST_PROBABILITY = 1e-7

Probabilities = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]] | NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassReport:
    """One class: precision, recall and F1 from 0 to 1, higher is better; ``support`` images have the class."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All figures of one evaluation on ``n`` images; all zero when there was none.

    ``accuracy`` is the share of images of which everything is right (exact match where there may be several
    classes). The macro figures are means over the classes that occur in the targets. ``log_loss`` is the mean
    negative logarithm of the true class's probability; ``brier`` the mean squared distance from the truth, summed
    over classes (Brier, "Verification of forecasts expressed in terms of probability", 1950; 0 to 2). Where there
    may be several classes both are means over images and classes (Brier 0 to 1). ``ece``, and the
    ``reliability`` it sums up, are defined in ``model.calibration``. The losses, Brier and ECE: lower is better.
    ``per_class`` follows the order of the classes; ``confusion[i][j]`` counts images of class i taken for class j and
    is ``None`` where there may be several classes.
    """

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    log_loss: float
    brier: float
    ece: float
    reliability: Reliability
    per_class: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate against active version, paired by image.

    ``log_loss_difference`` is the mean of candidate minus active: below zero the candidate is better;
    ``standard_error`` is that mean's. Above zero ``accuracy_difference`` speaks for the candidate.
    """

    n_images: int
    log_loss_difference: float
    standard_error: float
    accuracy_difference: float


def evaluate(
    probabilities: Probabilities,
    targets: Targets,
    *,
    multiple: bool,
    thresholds: Sequence[float] | NDArray[np.floating[Any]] | None = None,
) -> Report:
    """Evaluate probabilities, (n, k), against targets.

    ``thresholds``, (k,), from which on a class counts as predicted, are for several classes per image: 0.5 without.

    Raises:
        ValueError: the shapes do not fit.
    """
    truth = _as_matrix(targets, probabilities, multiple)
    predicted = _predicted(probabilities, multiple, thresholds)
    per_class = _class_reports(truth, predicted)
    occurring = [report for report in per_class if report.support]
    diagram = reliability(probabilities, targets)
    squares = (probabilities.astype(np.float64) - truth) ** 2
    return Report(
        accuracy=_mean((truth == predicted).all(axis=1)),
        macro_precision=_mean([report.precision for report in occurring]),
        macro_recall=_mean([report.recall for report in occurring]),
        macro_f1=_mean([report.f1 for report in occurring]),
        log_loss=_mean(log_losses(probabilities, targets)),
        brier=_mean(squares.mean(axis=1) if multiple else squares.sum(axis=1)),
        ece=diagram.ece,
        reliability=diagram,
        per_class=per_class,
        confusion=None if multiple else _confusion(truth, predicted),
        n=len(probabilities),
    )


def log_losses(probabilities: Probabilities, targets: Targets) -> NDArray[np.float64]:
    """Return the log loss of each image, (n,): the mean over classes where an image may have several.

    Probabilities closer to 0 or 1 than ``SMALLEST_PROBABILITY`` count as that.
    """
    truth = _as_matrix(targets, probabilities, targets.ndim == 2)
    clipped = np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    losses: NDArray[np.float64]
    if targets.ndim == 2:
        losses = -np.log(np.where(truth, clipped, 1 - clipped)).mean(axis=1)
    else:
        losses = -np.log((clipped * truth).sum(axis=1))
    return losses


def compare(
    candidate_probabilities: Probabilities, active_probabilities: Probabilities, targets: Targets, multiple: bool
) -> Comparison:
    """Compare two versions' probabilities, both (n, k), of the same images; several classes count from 0.5 on.

    Raises:
        ValueError: the shapes do not fit.
    """
    n_images = len(candidate_probabilities)
    truth = _as_matrix(targets, candidate_probabilities, multiple)
    if active_probabilities.shape != candidate_probabilities.shape:
        raise ValueError(
            f"probabilities of shapes {candidate_probabilities.shape} and {active_probabilities.shape} cannot be "
            "compared: both versions must score the same images and classes"
        )
    if n_images == 0:
        return Comparison(n_images=0, log_loss_difference=0.0, standard_error=0.0, accuracy_difference=0.0)
    differences = log_losses(candidate_probabilities, targets) - log_losses(active_probabilities, targets)
    right = [
        (truth == _predicted(probabilities, multiple, None)).all(axis=1).mean()
        for probabilities in (candidate_probabilities, active_probabilities)
    ]
    return Comparison(
        n_images=n_images,
        log_loss_difference=float(differences.mean()),
        standard_error=float(differences.std(ddof=1) / np.sqrt(n_images)) if n_images > 1 else 0.0,
        accuracy_difference=float(right[0] - right[1]),
    )


def _as_matrix(targets: Targets, probabilities: Probabilities, multiple: bool) -> NDArray[np.bool_]:
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities of shape {probabilities.shape} are not rows of images by columns of classes")
    expected = probabilities.shape if multiple else probabilities.shape[:1]
    if targets.shape != expected:
        raise ValueError(f"targets of shape {targets.shape} do not fit probabilities of shape {probabilities.shape}")
    return targets.astype(np.bool_) if multiple else _one_hot(targets, probabilities.shape[1])


def _predicted(
    probabilities: Probabilities, multiple: bool, thresholds: Sequence[float] | NDArray[np.floating[Any]] | None
) -> NDArray[np.bool_]:
    if multiple:
        predicted: NDArray[np.bool_] = probabilities >= np.asarray(0.5 if thresholds is None else thresholds)
        return predicted
    return _one_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def _one_hot(indices: NDArray[Any], n_classes: int) -> NDArray[np.bool_]:
    matrix: NDArray[np.bool_] = indices[:, None] == np.arange(n_classes)
    return matrix


def _class_reports(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[ClassReport, ...]:
    right = (truth & predicted).sum(axis=0)
    supports, claims = truth.sum(axis=0), predicted.sum(axis=0)
    return tuple(
        ClassReport(
            precision=_share(hits, claim),
            recall=_share(hits, support),
            f1=_share(2 * hits, claim + support),
            support=int(support),
        )
        for hits, claim, support in zip(right, claims, supports, strict=True)
    )


def _confusion(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    counts = truth.astype(np.float64).T @ predicted.astype(np.float64)
    return tuple(tuple(int(count) for count in row) for row in counts)


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


def _mean(values: Sequence[float] | NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
