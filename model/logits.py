"""Linear maps to logits, and logits to probabilities; numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = TypeVar("Floats", bound=np.floating[Any])

MAX_SPREAD_ROWS = 2000
"""A mean is known well enough from every so-many-th of more rows."""
LONGEST_LOG_ODDS = math.log(1e6)
"""No project has labels enough to tell odds of more than a million to one from certainty."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearMap:
    """``weight``, (p, k), and ``bias``, (k,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits, (n, k), of rows, (n, p)."""
        return coordinates @ self.weight + self.bias

    def spread(self, coordinates: NDArray[np.float32]) -> float:
        """Return the standard deviation of logits over classes, in the mean over rows, (n, p)."""
        step = -(-max(1, len(coordinates)) // MAX_SPREAD_ROWS)
        return float(self.logits(coordinates[::step]).std(axis=1).mean())


def softmax(logits: NDArray[Floats]) -> NDArray[Floats]:
    """Return probabilities over classes, (n, k), rows of which sum to 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[Floats] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def log_softmax(logits: NDArray[Floats]) -> NDArray[Floats]:
    """Return the logarithms of ``softmax``, (n, k)."""
    below = logits - logits.max(axis=1, keepdims=True)
    logarithms: NDArray[Floats] = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
    return logarithms


def sigmoid(logits: NDArray[Floats]) -> NDArray[Floats]:
    """Return the probability, from 0 to 1, of each class by itself, of any shape."""
    half: NDArray[Floats] = 0.5 * (1 + np.tanh(0.5 * logits))
    return half


def calibrated(logits: NDArray[Floats], temperature: float, *, multiple: bool) -> NDArray[Floats]:
    """Return probabilities, (n, k), from logits, (n, k): per image over classes, or of each class by itself.

    Log odds x beyond ``LONGEST_LOG_ODDS``, L, become L + log(1 + x - L). What is that sure differs no more in any way
    that labels could show; but it keeps its order, where the exponentials of its logits are all rounded to the same.
    """
    log_odds = logits / logits.dtype.type(temperature)
    if multiple:
        return sigmoid(np.copysign(_within_reason(np.abs(log_odds)), log_odds))
    weights = np.exp(-_within_reason(log_odds.max(axis=1, keepdims=True) - log_odds))
    probabilities: NDArray[Floats] = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def _within_reason(log_odds: NDArray[Floats]) -> NDArray[Floats]:
    """Change log odds, none below zero, in place."""
    beyond = log_odds > LONGEST_LOG_ODDS
    log_odds[beyond] = LONGEST_LOG_ODDS + np.log1p(log_odds[beyond] - LONGEST_LOG_ODDS)
    return log_odds
