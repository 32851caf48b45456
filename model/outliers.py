"""Images unlike all others: what does not belong to the project, is empty, or was photographed by mistake.

An image's distance is the mean of one minus the cosine to its ``N_NEIGHBOURS`` nearest others, by the last layer's
features as they are. (In the space that heads are fitted in, rare directions count as much as common ones, and all
images are about equally far apart: there strangers do not stand out.) It is an outlier beyond Tukey's fence: the third
quartile, and one and a half times the distance between the quartiles more.

Of ten photos of other sets put among the 300 to 1,137 of one, 93 and 98 in 100 were outliers, by backbone; of a set's
own photos 0.3 to 6 in 100 (``benchmarks/planted.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.duplicates import MAX_IMAGES
from model.head import AnyFloats, FloatArray

N_NEIGHBOURS = 20
FENCE = 1.5
SMALLEST_NUMBER = 2 * N_NEIGHBOURS
ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outliers:
    """How far each image is from others.

    Attributes:
        distances: (n,), from 0 to 2, the higher the odder.
        rows: of the outliers, the oddest first.
        usual_distance: the median of all.
    """

    distances: FloatArray
    rows: NDArray[np.intp]
    usual_distance: float


def outliers(features: AnyFloats, block_sizes: tuple[int, ...]) -> Outliers:
    """Find images unlike all others; of fewer than ``SMALLEST_NUMBER`` none is said to be.

    Args:
        features: (n, d).
        block_sizes: how a feature row is composed: the last block is the last layer's.

    Raises:
        ValueError: more than ``MAX_IMAGES`` rows, or rows that do not fit the blocks.
    """
    if len(features) > MAX_IMAGES:
        raise ValueError(f"{len(features)} images are too many to hold each against each: at most {MAX_IMAGES}")
    if features.shape[1] != sum(block_sizes):
        raise ValueError(f"rows of {features.shape[1]} features do not fit blocks of {block_sizes}")
    distances = neighbour_distances(features[:, -block_sizes[-1] :].astype(np.float32))
    if len(distances) < SMALLEST_NUMBER:
        return Outliers(distances=distances, rows=np.empty(0, np.intp), usual_distance=0.0)
    first, median, third = np.quantile(distances, (0.25, 0.5, 0.75))
    beyond = np.flatnonzero(distances > third + FENCE * (third - first))
    return Outliers(
        distances=distances, rows=beyond[np.argsort(-distances[beyond], kind="stable")], usual_distance=float(median)
    )


def neighbour_distances(rows: FloatArray) -> FloatArray:
    """Return each row's mean cosine distance to its nearest others, (n,); 0 where there is no other."""
    n_neighbours = min(N_NEIGHBOURS, len(rows) - 1)
    distances = np.zeros(len(rows), np.float32)
    if n_neighbours < 1:
        return distances
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        cosines = directions[start : start + ROWS_AT_ONCE] @ directions.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        nearest = np.partition(cosines, -n_neighbours, axis=1)[:, -n_neighbours:]
        distances[start : start + ROWS_AT_ONCE] = np.maximum(1 - nearest.mean(axis=1), 0)
    return distances
