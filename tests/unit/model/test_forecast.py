import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.forecast import LEVEL, Forecast, forecast


def measured(curve: np.ndarray, n_test: int, random: np.random.Generator) -> tuple[list[float], list[float]]:
    accuracies = random.binomial(n_test, curve) / n_test
    return accuracies.tolist(), np.sqrt(np.maximum(accuracies * (1 - accuracies), 0.01) / n_test).tolist()


@pytest.mark.parametrize(("n_points", "n_test"), [(1, 200), (2, 200), (3, 200), (8, 200), (8, 2000)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(n_points: int, n_test: int) -> None:
    random = np.random.default_rng(n_points)
    counts = np.array([12, 20, 30, 45, 70, 100, 150, 200])[-n_points:]
    n_curves, held = 100, 0
    for _ in range(n_curves):
        lasting, last = random.uniform(0, 0.15), random.uniform(0.05, 0.25)
        exponent, late = random.uniform(0.3, 0.9), random.uniform(0, 10)
        # The law sets in late, as it does in reality.
        true = 1 - lasting - last * ((np.append(counts, 250) + late) / (200 + late)) ** -exponent
        result = forecast(counts.tolist(), *measured(true[:-1].clip(0.1), n_test, random))
        gain = true[-1] - true[-2]
        held += result.low <= gain <= result.high
    assert held / n_curves >= LEVEL - 0.05


def test_a_well_measured_curve_is_carried_on() -> None:
    counts = [10, 20, 40, 80, 160]
    accuracies = [1 - (0.05 + 1.5 * n**-0.6) for n in counts]
    result = forecast(counts, accuracies, [0.001] * 5, n_more=160)
    assert result.gain == pytest.approx(1.5 * (160**-0.6 - 320**-0.6), abs=0.01)
    assert result.accuracy == pytest.approx(accuracies[-1], abs=0.005)
    assert result.high - result.low < 0.04


def test_a_flat_curve_gains_little_and_a_steep_one_much() -> None:
    counts, noise = [20, 40, 80, 120, 160], [0.01] * 5
    flat = forecast(counts, [0.9, 0.9, 0.905, 0.9, 0.9], noise)
    steep = forecast(counts, [0.4, 0.55, 0.67, 0.73, 0.77], noise)
    assert flat.high < 0.02
    assert steep.high > 2 * flat.high
    assert steep.gain > 2 * flat.gain


def test_fewer_points_are_less_certain() -> None:
    counts, accuracies, noise = [20, 40, 80, 160], [0.5, 0.6, 0.68, 0.75], [0.02] * 4
    widths = []
    for n_points in (1, 2, 4):
        result = forecast(counts[-n_points:], accuracies[-n_points:], noise[-n_points:])
        widths.append(result.high - result.low)
    assert widths == sorted(widths, reverse=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1), st.floats(0, 0.3)), min_size=1, max_size=8),
    st.integers(1, 1000),
)
def test_every_forecast_is_possible(points: list[tuple[int, float, float]], n_more: int) -> None:
    counts, accuracies, noise = zip(*points, strict=True)
    result = forecast(counts, accuracies, noise, n_more)
    assert 0 <= result.low <= result.high <= 1
    assert result.low - 1e-9 <= result.gain
    assert 0 <= result.accuracy <= result.accuracy + result.gain <= 1 + 1e-9
    backwards = forecast(counts[::-1], accuracies[::-1], noise[::-1], n_more)
    assert backwards.gain == pytest.approx(result.gain)
    assert forecast(counts, accuracies, noise, n_more + 50).gain >= result.gain - 1e-12


def test_sentences() -> None:
    def of(accuracy: float, gain: float, low: float, high: float) -> str:
        return Forecast(n_labels=100, n_more=50, accuracy=accuracy, gain=gain, low=low, high=high).sentence

    assert of(0.81, 0.032, 0.01, 0.06) == (
        "50 more labels would raise accuracy from 81 % to about 84 %: by 3.2 points (1.0 to 6.0)."
    )
    assert of(0.95, 0.004, 0, 0.02).startswith("50 more labels would probably change little")
    assert of(0.95, 0.002, 0, 0.005).startswith("50 more labels would change little")


@pytest.mark.parametrize(
    ("points", "n_more", "message"),
    [
        (([], [], []), 50, "at least one point"),
        (([10], [0.5, 0.6], [0.1]), 50, "one of each"),
        (([0], [0.5], [0.1]), 50, "at least 1"),
        (([10], [0.5], [0.1]), 0, "at least 1"),
        (([10], [1.5], [0.1]), 50, "between 0 and 1"),
        (([10], [float("nan")], [0.1]), 50, "between 0 and 1"),
    ],
)
def test_values_that_cannot_be_are_refused(points: tuple, n_more: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forecast(*points, n_more)
