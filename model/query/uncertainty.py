"""How little a model knows about each image: probabilities in, one value per image out, higher is less certain.

Where an image may have several classes, the alternatives are sets of classes, and the classes are taken as
independent: every measure is the one for single classes, applied to the sets.

Shapes: m images, k classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.head import AnyFloats

Doubles = NDArray[np.float64]

SMALLEST_PROBABILITY = 1e-12


def least_confidence(probabilities: AnyFloats, *, multiple: bool) -> Doubles:
    """Return one minus the probability of the likeliest alternative, (m,), from 0 to 1."""
    return _doubt_and_second(probabilities, multiple)[0]


def narrowness(probabilities: AnyFloats, *, multiple: bool) -> Doubles:
    """Return one minus the margin, (m,), from 0 to 1.

    The margin is the difference in probability between the two likeliest alternatives (Scheffer, Decomain and
    Wrobel: "Active Hidden Markov Models for Information Extraction", 2001).
    """
    doubt, second = _doubt_and_second(probabilities, multiple)
    return doubt + second


def entropy(probabilities: AnyFloats, *, multiple: bool) -> Doubles:
    """Return the entropy over the alternatives, (m,), in nats."""
    wide = probabilities.astype(np.float64, copy=False)
    terms = _negative_plogp(wide)
    if multiple:
        terms += _negative_plogp(1 - wide)
    total: Doubles = terms.sum(axis=1)
    return total


def _doubt_and_second(probabilities: AnyFloats, multiple: bool) -> tuple[Doubles, Doubles]:
    """Return one minus the probability of the likeliest alternative, and that of the second likeliest, (m,) each.

    The first is the sum of what is small: subtracted from one, what nearly equals one would all be the same.
    """
    wide = probabilities.astype(np.float64, copy=False)
    if multiple:
        # The second likeliest set differs from the likeliest in the least certain class.
        doubts = np.minimum(wide, 1 - wide)
        log_first = np.log1p(-doubts).sum(axis=1)
        largest = doubts.max(axis=1)
        return -np.expm1(log_first), np.exp(log_first) * largest / (1 - largest)
    if wide.shape[1] < 2:
        return np.zeros(len(wide)), np.zeros(len(wide))
    last_two_largest = np.partition(wide, -2, axis=1)
    return last_two_largest[:, :-1].sum(axis=1), last_two_largest[:, -2]


def _negative_plogp(probabilities: Doubles) -> Doubles:
    terms: Doubles = -probabilities * np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return terms
