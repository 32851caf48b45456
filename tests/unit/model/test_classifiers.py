"""What the classifiers make of labels: how methods are averaged, and classes of very different sizes."""

from __future__ import annotations

import numpy as np
import pytest

from model import classifiers
from model.classifiers import fit_single_label
from model.discriminant import fit_lda, moments_of, prior_of
from model.logits import LinearMap, softmax

NO_POOL = np.empty((0, 4), np.float32)


def overlapping(n_per_class: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 4) of classes that nobody can quite tell apart, and their class indices, (n,)."""
    targets = np.repeat(np.arange(len(n_per_class)), n_per_class)
    noise = np.random.default_rng(0).normal(size=(len(targets), 4))
    return (noise + np.eye(len(n_per_class), 4)[targets]).astype(np.float32), targets


def fit_labelled(rows: np.ndarray, targets: np.ndarray) -> LinearMap:
    moments = moments_of(rows, np.eye(targets.max() + 1, dtype=np.float32)[targets])
    return fit_single_label(rows, targets, moments, NO_POOL)["labelled"]


@pytest.mark.parametrize(("labels_per_class", "share"), [(5, 0.5), (25, 0.5), (50, 0.25), (100, 0.125), (500, 0.025)])
def test_logistic_regression_counts_half_with_few_labels_and_less_with_more(
    labels_per_class: int, share: float
) -> None:
    rows, targets = overlapping([labels_per_class] * 3)
    moments = moments_of(rows, np.eye(3, dtype=np.float32)[targets])
    discriminant = fit_lda(moments, prior_of(moments, multiple=False))
    logistic = classifiers._fit_logistic(rows, targets)
    towards = discriminant.spread(rows) / logistic.spread(rows) * logistic.weight - discriminant.weight
    moved = fit_labelled(rows, targets).weight - discriminant.weight
    assert float((moved * towards).sum() / (towards**2).sum()) == pytest.approx(share, rel=1e-2)


def test_classes_thinned_for_logistic_regression_are_as_frequent_as_before() -> None:
    rows, targets = overlapping([2600, 300, 100])
    assert np.bincount(targets[classifiers._balanced(targets, 1000)]).tolist() == [600, 300, 100]
    share_of_class = softmax(classifiers._fit_logistic(rows, targets).logits(rows)).mean(axis=0)
    np.testing.assert_allclose(share_of_class, [2600 / 3000, 300 / 3000, 100 / 3000], rtol=0.15)
