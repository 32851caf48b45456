"""What more labels would bring: a learning curve, carried on.

Error falls with the number of labels n as a power law above what no label removes, a + b n^-c (Cortes, Jackel, Solla,
Vapnik and Denker: "Learning Curves: Asymptotic Values and Rate of Convergence", 1994). With few and noisy points many
such curves fit about equally well. So all of them on a grid are weighted by how well they fit and by what is usual
for c, and the forecast is the distribution over them: two points, or one, give a wide interval around a usual slope.
Real curves follow the law over short stretches only, and which images happened to be labelled moves them too: points
below ``SMALLEST_LABELS_SHARE`` of the largest number of labels are left out, and to the noise of each point comes
``DRAW_SHARE`` of its error. These constants were found on curves of photos, as means over many draws of labels: above
some fifteen labels per class intervals hold about as often as they say, below that gains tend to be underestimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

USUAL_EXPONENT = 0.8
EXPONENT_SPREAD = 0.7
EXPONENTS = np.geomspace(0.1, 2.0, 25)
LASTING_SHARES = (np.arange(20) + 0.5) / 20
N_ERRORS = 41
SMALLEST_LABELS_SHARE = 0.5
DRAW_SHARE = 0.15
ERROR_RANGE_IN_STANDARD_ERRORS = 5.0
SMALLEST_STANDARD_ERROR = 0.005
LEVEL = 0.9
NOTEWORTHY_GAIN = 0.01

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The gain in accuracy that ``n_more`` labels would bring.

    Attributes:
        n_labels: labels there are.
        n_more: labels to add.
        accuracy: now, by the curve, 0 to 1.
        gain: expected growth of accuracy.
        low: with a probability of ``LEVEL`` the gain lies between this
        high: and this.
    """

    n_labels: int
    n_more: int
    accuracy: float
    gain: float
    low: float
    high: float

    @property
    def sentence(self) -> str:
        """The forecast in plain words."""
        points = f"{100 * self.gain:.1f} points ({100 * self.low:.1f} to {100 * self.high:.1f})"
        now, then = f"{100 * self.accuracy:.0f} %", f"{100 * (self.accuracy + self.gain):.0f} %"
        if self.high < NOTEWORTHY_GAIN:
            return f"{self.n_more} more labels would change little: accuracy is {now} and would grow by {points}."
        if self.gain < NOTEWORTHY_GAIN:
            return f"{self.n_more} more labels would probably change little: accuracy {now}, growth {points}."
        return f"{self.n_more} more labels would raise accuracy from {now} to about {then}: by {points}."


def forecast(
    n_labels: Sequence[int], accuracies: Sequence[float], standard_errors: Sequence[float], n_more: int = 50
) -> Forecast:
    """Carry a learning curve on.

    Args:
        n_labels: at each point, above 0, in any order; a single point will do.
        accuracies: there, 0 to 1, each measured on images that the model did not learn from.
        standard_errors: of the accuracies; those below ``SMALLEST_STANDARD_ERROR`` count as that.
        n_more: labels to add to the largest number.

    Raises:
        ValueError: no points, or values that cannot be.
    """
    counts, errors, noise = _checked(n_labels, accuracies, standard_errors, n_more)
    last = counts.max()
    near = errors[counts == last].mean()
    reach = ERROR_RANGE_IN_STANDARD_ERRORS * noise[counts == last].min()
    # A curve is told by its error at the last point, the share of it that lasts for ever, and its exponent.
    now = np.linspace(max(0.0, near - reach), min(1.0, near + reach), N_ERRORS)[:, None, None]
    lasting = LASTING_SHARES[:, None]
    log_weights = -0.5 * (np.log(EXPONENTS / USUAL_EXPONENT) / EXPONENT_SPREAD) ** 2 + 0 * now * lasting
    used = counts >= SMALLEST_LABELS_SHARE * last
    for count, error, standard_error in zip(counts[used], errors[used], noise[used], strict=True):
        curve = now * (lasting + (1 - lasting) * (count / last) ** -EXPONENTS)
        log_weights -= 0.5 * ((error - curve) / standard_error) ** 2
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    gains = now * (1 - lasting) * (1 - ((last + n_more) / last) ** -EXPONENTS)
    low, high = _quantiles(gains, weights, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Forecast(
        n_labels=int(last),
        n_more=n_more,
        accuracy=float(1 - (weights * now).sum()),
        gain=float((weights * gains).sum()),
        low=low,
        high=high,
    )


def _checked(
    n_labels: Sequence[int], accuracies: Sequence[float], standard_errors: Sequence[float], n_more: int
) -> tuple[Doubles, Doubles, Doubles]:
    if not len(n_labels) == len(accuracies) == len(standard_errors) > 0:
        raise ValueError(
            f"{len(n_labels)} numbers of labels, {len(accuracies)} accuracies and {len(standard_errors)} standard "
            "errors: a learning curve needs one of each at every point, and at least one point"
        )
    counts, errors = np.asarray(n_labels, np.float64), 1 - np.asarray(accuracies, np.float64)
    sampling = np.maximum(np.asarray(standard_errors, np.float64), SMALLEST_STANDARD_ERROR)
    noise = np.hypot(sampling, DRAW_SHARE * errors)
    if counts.min() < 1 or n_more < 1:
        raise ValueError(f"labels must be at least 1: {int(counts.min())} of a point, {n_more} more")
    if not (np.isfinite(noise).all() and errors.min() >= 0 and errors.max() <= 1):
        raise ValueError(f"accuracies must lie between 0 and 1, standard errors be finite: {accuracies}, {noise}")
    return counts, errors, noise


def _quantiles(values: Doubles, weights: Doubles, levels: tuple[float, float]) -> tuple[float, float]:
    """Return the values that have these shares of all weight below them."""
    order = np.argsort(values, axis=None)
    below = np.cumsum(weights.ravel()[order])
    low, high = values.ravel()[order][np.searchsorted(below, levels).clip(max=len(order) - 1)].tolist()
    return low, high
