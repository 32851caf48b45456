import json
from dataclasses import asdict

import numpy as np
import pytest
from sklearn import metrics

from model.evaluation import compare, evaluate


def single_label(n_images: int = 200, n_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    # The last class never occurs.
    targets = random.integers(0, n_classes - 1, n_images)
    logits = random.normal(size=(n_images, n_classes))
    logits[np.arange(n_images), targets] += 1.5
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32), targets


def multi_label(n_images: int = 200, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    targets = random.random((n_images, n_classes)) < 0.3
    logits = random.normal(size=(n_images, n_classes)) + 2 * targets - 1
    return (1 / (1 + np.exp(-logits))).astype(np.float32), targets


def test_single_label_figures_are_scikit_learns() -> None:
    probabilities, targets = single_label()
    report = evaluate(probabilities, targets, multiple=False)
    predicted = probabilities.argmax(axis=1)
    labels = [0, 1, 2, 3]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        targets, predicted, labels=labels, average="macro", zero_division=0
    )
    assert report.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert (report.macro_precision, report.macro_recall, report.macro_f1) == pytest.approx((precision, recall, f1))
    assert report.log_loss == pytest.approx(metrics.log_loss(targets, probabilities, labels=range(5)), rel=1e-5)
    one_hot = np.eye(5)[targets]
    assert report.brier == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert report.confusion is not None
    np.testing.assert_array_equal(report.confusion, metrics.confusion_matrix(targets, predicted, labels=range(5)))
    per_class = metrics.precision_recall_fscore_support(targets, predicted, labels=range(5), zero_division=0)
    found = [(each.precision, each.recall, each.f1, each.support) for each in report.per_class]
    np.testing.assert_allclose(found, np.transpose(per_class), rtol=1e-9)
    assert report.n == 200


def test_multi_label_figures_are_scikit_learns() -> None:
    probabilities, targets = multi_label()
    thresholds = (0.5, 0.4, 0.3, 0.6)
    report = evaluate(probabilities, targets, multiple=True, thresholds=thresholds)
    predicted = probabilities >= np.array(thresholds)
    assert report.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert report.macro_f1 == pytest.approx(metrics.f1_score(targets, predicted, average="macro"))
    losses = [metrics.log_loss(targets[:, c], probabilities[:, c]) for c in range(4)]
    assert report.log_loss == pytest.approx(np.mean(losses), rel=1e-5)
    briers = [metrics.brier_score_loss(targets[:, c], probabilities[:, c]) for c in range(4)]
    assert report.brier == pytest.approx(np.mean(briers), rel=1e-5)
    assert report.confusion is None


def test_report_on_no_image_is_all_zero_and_writable_as_json() -> None:
    report = evaluate(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), multiple=False)
    assert (report.n, report.accuracy, report.log_loss, report.ece) == (0, 0.0, 0.0, 0.0)
    json.dumps(asdict(report), allow_nan=False)


def test_certain_and_wrong_is_a_finite_loss() -> None:
    report = evaluate(np.array([[1.0, 0.0]], np.float32), np.array([1]), multiple=False)
    assert report.log_loss == pytest.approx(-np.log(1e-7))


@pytest.mark.parametrize(("targets", "multiple"), [(np.zeros(3, int), False), (np.zeros((2, 3), bool), True)])
def test_shapes_that_do_not_fit_are_refused(targets: np.ndarray, multiple: bool) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        evaluate(np.full((2, 2), 0.5, np.float32), targets, multiple=multiple)


def test_comparison_is_paired_by_image() -> None:
    targets = np.array([0, 1, 0, 1])
    active = np.array([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.5, 0.5]])
    candidate = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.4, 0.6]])
    result = compare(candidate, active, targets, multiple=False)
    differences = -np.log([0.9, 0.7, 0.6, 0.6]) + np.log([0.6, 0.4, 0.6, 0.5])
    assert result.n_images == 4
    assert result.log_loss_difference == pytest.approx(differences.mean())
    assert result.standard_error == pytest.approx(differences.std(ddof=1) / 2)
    assert result.accuracy_difference == pytest.approx(0.5)


def test_comparison_of_several_classes_per_image() -> None:
    probabilities, targets = multi_label()
    result = compare(probabilities, np.full_like(probabilities, 0.5), targets, multiple=True)
    assert result.log_loss_difference < 0 < result.accuracy_difference


@pytest.mark.parametrize("n_images", [0, 1])
def test_comparison_on_hardly_any_image_has_no_error(n_images: int) -> None:
    probabilities = np.full((n_images, 2), 0.5)
    result = compare(probabilities, probabilities, np.zeros(n_images, int), multiple=False)
    assert (result.n_images, result.log_loss_difference, result.standard_error) == (n_images, 0.0, 0.0)


def test_versions_with_different_classes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same images and classes"):
        compare(np.full((2, 2), 0.5), np.full((2, 3), 0.3), np.zeros(2, int), multiple=False)
