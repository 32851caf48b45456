"""How little a model knows about each image: probabilities in, one value per image out, higher is less certain.

Where an image may have several classes, the alternatives are sets of classes, and the classes are taken as
independent: every measure is the one for single classes, applied to the sets.

Shapes: m images, k classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.head import FloatArray

Doubles = NDArray[np.float64]

SMALLEST_PROBABILITY = 1e-12


def least_confidence(probabilities: FloatArray, *, multiple: bool) -> Doubles:
    """Return one minus the probability of the likeliest alternative, (m,), from 0 to 1."""
    return 1 - _two_likeliest(probabilities, multiple)[0]


def narrowness(probabilities: FloatArray, *, multiple: bool) -> Doubles:
    """Return one minus the margin, (m,), from 0 to 1.

    The margin is the difference in probability between the two likeliest alternatives (Scheffer, Decomain and
    Wrobel: "Active Hidden Markov Models for Information Extraction", 2001).
    """
    first, second = _two_likeliest(probabilities, multiple)
    return 1 - (first - second)


def entropy(probabilities: FloatArray, *, multiple: bool) -> Doubles:
    """Return the entropy over the alternatives, (m,), in nats."""
    wide = probabilities.astype(np.float64)
    terms = _negative_plogp(wide)
    if multiple:
        terms += _negative_plogp(1 - wide)
    total: Doubles = terms.sum(axis=1)
    return total


def _two_likeliest(probabilities: FloatArray, multiple: bool) -> tuple[Doubles, Doubles]:
    """Return the probabilities of the likeliest and of the second likeliest alternative, (m,) each."""
    wide = probabilities.astype(np.float64)
    if multiple:
        # The second likeliest set differs from the likeliest in the least certain class.
        decided = np.maximum(wide, 1 - wide)
        weakest = decided.min(axis=1)
        first = decided.prod(axis=1)
        return first, first * (1 - weakest) / weakest
    if wide.shape[1] < 2:
        return wide.sum(axis=1), np.zeros(len(wide))
    two = np.partition(wide, -2, axis=1)[:, -2:]
    return two[:, 1], two[:, 0]


def _negative_plogp(probabilities: Doubles) -> Doubles:
    terms: Doubles = -probabilities * np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return terms
