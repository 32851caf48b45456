"""Linear maps to logits, and logits to probabilities; numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearMap:
    """``weight``, (p, k), and ``bias``, (k,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits, (n, k), of rows, (n, p)."""
        return coordinates @ self.weight + self.bias


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return probabilities over classes, (n, k), rows of which sum to 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the probability, from 0 to 1, of each class by itself, of any shape."""
    half: NDArray[np.float32] = (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
    return half


def calibrated(logits: NDArray[np.floating[Any]], temperature: float, *, multiple: bool) -> NDArray[np.float32]:
    """Return probabilities, (n, k), from logits, (n, k): per image over classes, or of each class by itself."""
    scaled = logits / np.float32(temperature)
    return sigmoid(scaled) if multiple else softmax(scaled)
