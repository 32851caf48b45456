import numpy as np
import pytest

from model.calibration import (
    SMALLEST_FINAL_SHARE,
    expected_temperature,
    final_temperature,
    fit_temperature,
    reliability,
)
from model.logits import calibrated


def honest_logits(n_images: int, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the distribution that the targets are drawn from."""
    random = np.random.default_rng(5)
    logits = 2 * random.normal(size=(n_images, n_classes)).astype(np.float32)
    probabilities = calibrated(logits, 1.0, multiple=False)
    targets = (random.random((n_images, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    return logits, np.minimum(targets, n_classes - 1)


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_temperature_undoes_a_known_distortion(factor: float) -> None:
    logits, targets = honest_logits(20_000)
    assert fit_temperature(factor * logits, targets) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_temperature_of_several_classes_per_image(factor: float) -> None:
    random = np.random.default_rng(6)
    logits = 2 * random.normal(size=(10_000, 3)).astype(np.float32)
    targets = random.random(logits.shape) < calibrated(logits, 1.0, multiple=True)
    assert fit_temperature(factor * logits, targets) == pytest.approx(factor, rel=0.05)


def test_temperature_of_few_images_stays_near_what_is_expected() -> None:
    logits = np.array([[30.0, 0.0], [0.0, 30.0]], np.float32)
    # Both are right: without a prior T would run to zero.
    expected = expected_temperature(logits, len(logits), multiple=False)
    assert expected == pytest.approx(15)
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(expected, rel=0.1)
    assert fit_temperature(logits, np.array([0, 1]), 40.0) == pytest.approx(40, rel=0.1)


def test_where_few_images_judge_all_labels_that_taught_decide_what_is_expected() -> None:
    logits = np.array([[30.0, 0.0], [0.0, 30.0]], np.float32)
    targets = np.array([0, 1])
    fitted = fit_temperature(logits, targets)
    assert fit_temperature(logits, targets, labels_per_image=16) == pytest.approx(fitted / 2, rel=0.1)


@pytest.mark.parametrize("multiple", [False, True])
def test_without_an_image_a_typical_temperature_is_expected(multiple: bool) -> None:
    targets = np.zeros((0, 2), bool) if multiple else np.zeros(0, int)
    assert fit_temperature(np.zeros((0, 2), np.float32), targets) == pytest.approx(5, rel=1e-2)


def test_what_is_expected_grows_with_the_logits_and_falls_with_the_labels_per_class() -> None:
    logits, _ = honest_logits(8)
    expected = expected_temperature(logits, len(logits), multiple=False)
    assert expected_temperature(3 * logits, len(logits), multiple=False) == pytest.approx(3 * expected)
    assert expected_temperature(logits, 16 * len(logits), multiple=False) == pytest.approx(expected / 2)
    assert expected_temperature(logits + 7, len(logits), multiple=False) == pytest.approx(expected, rel=1e-5)


def test_a_class_that_is_there_or_not_counts_as_two() -> None:
    random = np.random.default_rng(8)
    single = random.normal(size=(40, 2)).astype(np.float32)
    there_or_not = single[:, :1] - single[:, 1:]
    # One class has twice the labels per class that two have.
    of_two = expected_temperature(single, len(single), multiple=False)
    assert expected_temperature(there_or_not, len(there_or_not), multiple=True) * 2**0.25 == pytest.approx(
        of_two, rel=1e-5
    )


def test_many_images_overrule_what_was_expected() -> None:
    logits, targets = honest_logits(20_000)
    assert fit_temperature(logits, targets) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("n_images", [50, 5000])
def test_temperature_does_not_run_away_when_every_image_is_right(n_images: int) -> None:
    logits = 1000 * np.eye(5, dtype=np.float32)[np.arange(n_images) % 5]
    expected = expected_temperature(logits, len(logits), multiple=False)
    assert expected / 2 < fit_temperature(logits, np.arange(n_images) % 5) < 2 * expected


@pytest.mark.parametrize("multiple", [False, True])
def test_few_labels_that_mean_nothing_make_the_head_far_less_sure_than_expected(multiple: bool) -> None:
    random = np.random.default_rng(9)
    logits = 10 * random.normal(size=(60, 3)).astype(np.float32)
    targets = random.random((60, 3)) < 0.5 if multiple else random.integers(0, 3, 60)
    assert fit_temperature(logits, targets) > 3 * expected_temperature(logits, len(logits), multiple=multiple)


def test_final_head_is_trusted_more_than_those_of_the_folds_while_labels_are_few() -> None:
    assert final_temperature(4.0, 0) == final_temperature(4.0, 5) == 4 * SMALLEST_FINAL_SHARE
    assert final_temperature(4.0, 100) < final_temperature(4.0, 10_000) < 4.0
    assert final_temperature(4.0, 1_000_000) == pytest.approx(4.0, rel=0.01)


def test_constant_logits_have_a_finite_temperature() -> None:
    temperature = fit_temperature(np.zeros((100, 3), np.float32), np.zeros(100, int))
    assert np.isfinite(temperature)
    assert temperature > 0


def test_temperature_does_not_change_the_order_of_classes() -> None:
    logits, _ = honest_logits(100)
    cold, hot = (calibrated(logits, temperature, multiple=False) for temperature in (0.3, 3.0))
    np.testing.assert_array_equal(cold.argsort(axis=1), hot.argsort(axis=1))
    np.testing.assert_allclose(cold.sum(axis=1), 1, rtol=1e-5)


def test_expected_calibration_error_by_hand() -> None:
    # Bins of a tenth: two answers at 0.85 of which one is right, two at 0.95 that are both right.
    probabilities = np.array([[0.85, 0.15], [0.85, 0.15], [0.05, 0.95], [0.05, 0.95]])
    diagram = reliability(probabilities, np.array([0, 1, 1, 1]), n_bins=10)
    assert diagram.counts[8] == diagram.counts[9] == 2
    assert diagram.accuracies[8] == 0.5
    assert diagram.confidences[9] == pytest.approx(0.95)
    assert diagram.ece == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin() -> None:
    diagram = reliability(np.array([[0.5, 0.5]]), np.array([0]), n_bins=2)
    assert diagram.counts == (1, 0)


def test_calibration_error_of_several_classes_is_over_all_of_them() -> None:
    diagram = reliability(np.array([[0.9, 0.1]]), np.array([[True, False]]), n_bins=10)
    assert diagram.ece == pytest.approx(0.1)


def test_reliability_without_images() -> None:
    assert reliability(np.zeros((0, 2)), np.zeros(0, int)).ece == 0.0
