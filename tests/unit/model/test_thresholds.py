import numpy as np
import pytest

from model.thresholds import fit_thresholds


def test_threshold_of_many_images_is_where_f1_is_best() -> None:
    random = np.random.default_rng(1)
    truth = random.random((20_000, 1)) < 0.2
    probabilities = np.where(truth, 0.35, 0.05) + 0.1 * random.random(truth.shape)
    (threshold,) = fit_thresholds(probabilities.astype(np.float32), truth)
    assert 0.15 < threshold < 0.35


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([0.9, 0.8, 0.2, 0.1], 0.5), ([0.9, 0.8, 0.7, 0.1], 0.4), ([0.4, 0.3, 0.2, 0.1], 0.35)],
    ids=["all are right", "F1 is four fifths", "none is suggested"],
)
def test_threshold_of_few_images_stays_near_half_of_f1(probabilities: list[float], expected: float) -> None:
    truth = np.array([[True], [True], [False], [False]])
    (threshold,) = fit_thresholds(np.array(probabilities, np.float32)[:, None], truth)
    assert threshold == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("value", [True, False])
def test_a_class_with_one_side_only_keeps_a_half(value: bool) -> None:
    assert fit_thresholds(np.full((10, 1), 0.3, np.float32), np.full((10, 1), value)) == (0.5,)


def test_no_images_give_a_half_for_every_class() -> None:
    assert fit_thresholds(np.zeros((0, 3), np.float32), np.zeros((0, 3), bool)) == (0.5, 0.5, 0.5)


def test_equal_probabilities_are_not_parted() -> None:
    truth = np.array([[True], [False]] * 50)
    (threshold,) = fit_thresholds(np.full((100, 1), 0.6, np.float32), truth)
    assert threshold < 0.6
