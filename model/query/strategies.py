"""The strategies by name, and scores from any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.head import FloatArray
from model.query.geometry import Indices, repeats_last, shuffled_order
from model.query.gradients import badge_order
from model.query.pool import Pool, reduced
from model.query.representation import coverage_order, k_centre_order, typicality_order
from model.query.tandem import tandem_order
from model.query.uncertainty import Doubles, entropy, least_confidence, narrowness

STRATEGIES = (
    "tandem",
    "random",
    "least_confident",
    "margin",
    "entropy",
    "typicality",
    "coverage",
    "k_centre",
    "badge",
)
DEFAULT_STRATEGY = "tandem"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What to ask first.

    Attributes:
        values: (m,), above 0 up to 1, all different: the higher, the sooner. The batch has the highest values,
            in the order in which it was chosen.
        at_random: (m,), which images of the batch were drawn by chance alone. Their labels tell, without bias,
            how good predictions for the pool are; those of the others do not.
    """

    values: FloatArray
    at_random: NDArray[np.bool_]


def score(strategy: str, pool: Pool, *, batch_size: int, seed: int) -> Scores:
    """Score each image of the pool.

    An image that repeats another one of the batch, or one that was labelled or skipped, is not in it while there are
    others.
    Strategies that need probabilities ask at random while there are none; ``tandem`` asks what is typical.

    Args:
        strategy: one of ``STRATEGIES``.
        pool: the images.
        batch_size: how many of them will be asked before there are new scores.
        seed: decides what is random, ties too; the same arguments give the same result.

    Raises:
        ValueError: no such strategy, or a batch of no image.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no query strategy {strategy!r}: it must be one of {', '.join(STRATEGIES)}")
    if batch_size < 1:
        raise ValueError(f"a batch has at least one image, not {batch_size}")
    n_images = len(pool.features)
    batch_size = min(batch_size, n_images)
    at_random = np.zeros(n_images, np.bool_)
    values = np.empty(n_images, np.float32)
    if n_images:
        random = np.random.default_rng(seed)
        pool = reduced(pool)
        order, drawn = _order(strategy, pool, batch_size, random)
        order = repeats_last(order, pool.features, pool.known_features, batch_size, random)
        at_random[drawn] = True
        at_random[order[batch_size:]] = False
        values[order] = 1 - np.arange(n_images) / n_images
    return Scores(values=values, at_random=at_random)


def _order(strategy: str, pool: Pool, batch_size: int, random: np.random.Generator) -> tuple[Indices, Indices]:
    """Return all rows, the one to ask first in front, and those that were drawn at random."""
    if strategy == "tandem":
        return tandem_order(pool, batch_size, random)
    nobody = np.empty(0, np.intp)
    if strategy in _BY_FEATURES:
        return _BY_FEATURES[strategy](pool, batch_size, random), nobody
    if strategy == "random" or pool.probabilities is None:
        order = random.permutation(len(pool.features))
        return order, order
    if strategy == "badge":
        return badge_order(pool, pool.probabilities, batch_size, random), nobody
    uncertainty = _BY_UNCERTAINTY[strategy](pool.probabilities, multiple=pool.multiple)
    return shuffled_order([-uncertainty], random), nobody


_BY_FEATURES: dict[str, Callable[[Pool, int, np.random.Generator], Indices]] = {
    "typicality": typicality_order,
    "coverage": coverage_order,
    "k_centre": k_centre_order,
}


class _Measure(Protocol):
    def __call__(self, probabilities: FloatArray, *, multiple: bool) -> Doubles: ...


_BY_UNCERTAINTY: dict[str, _Measure] = {
    "least_confident": least_confidence,
    "margin": narrowness,
    "entropy": entropy,
}
