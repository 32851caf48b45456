import numpy as np
import pytest

from model.calibration import (
    HELPED_BY_POOL,
    LABELS_ALONE,
    TemperaturePrior,
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


@pytest.mark.parametrize("prior", [LABELS_ALONE, HELPED_BY_POOL])
def test_temperature_of_few_images_stays_near_what_is_expected(prior: TemperaturePrior) -> None:
    logits = np.array([[30.0, 0.0], [0.0, 30.0]], np.float32)
    # Both are right: without a prior T would run to zero.
    assert fit_temperature(logits, np.array([0, 1]), prior) == pytest.approx(prior.temperature, rel=0.1)
    assert fit_temperature(logits[:0], np.zeros(0, int), prior) == pytest.approx(prior.temperature, rel=1e-2)


@pytest.mark.parametrize("prior", [LABELS_ALONE, HELPED_BY_POOL])
def test_many_images_overrule_what_was_expected(prior: TemperaturePrior) -> None:
    logits, targets = honest_logits(20_000)
    assert fit_temperature(logits, targets, prior) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("n_images", [50, 5000])
@pytest.mark.parametrize("prior", [LABELS_ALONE, HELPED_BY_POOL])
def test_temperature_does_not_run_away_when_every_image_is_right(n_images: int, prior: TemperaturePrior) -> None:
    logits = 1000 * np.eye(5, dtype=np.float32)[np.arange(n_images) % 5]
    temperature = fit_temperature(logits, np.arange(n_images) % 5, prior)
    assert prior.temperature / 2 < temperature < 2 * prior.temperature


@pytest.mark.parametrize("prior", [LABELS_ALONE, HELPED_BY_POOL])
def test_final_head_is_trusted_more_than_those_of_the_folds_while_labels_are_few(prior: TemperaturePrior) -> None:
    assert final_temperature(4.0, 0, prior) == final_temperature(4.0, 5, prior) == 4 * prior.smallest_final_share
    assert final_temperature(4.0, 100, prior) < final_temperature(4.0, 10_000, prior) < 4.0
    assert final_temperature(4.0, 1_000_000, prior) == pytest.approx(4.0, rel=0.01)


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
