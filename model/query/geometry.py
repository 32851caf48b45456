"""Distances between many rows in bounded memory: neighbours, clusters, greedy choices, near duplicates.

Shapes: m rows, p dimensions, c centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.head import FloatArray

Indices = NDArray[np.intp]
DistancesTo = Callable[[int], FloatArray]
"""One row to the squared distances, (m,), of all rows to it."""
Pick = Callable[[FloatArray], int]
"""Squared distances, (m,), to the closest of the chosen rows, to the row to choose next."""

MAX_CHUNK_VALUES = 4_000_000
MAX_CLUSTERED_ROWS = 10_000
N_ITERATIONS = 10
MAX_NEIGHBOUR_ROWS = 1000
REPEAT_SHARE = 0.15
ROUNDING = 1e-5
WALK_ROWS = 256


def squared_distances(rows: FloatArray, others: FloatArray) -> FloatArray:
    """Return the squared Euclidean distances, (m, c), never below zero."""
    distances: FloatArray = rows @ (-2 * others.T)
    distances += np.einsum("ij,ij->i", rows, rows)[:, None]
    distances += np.einsum("ij,ij->i", others, others)
    return np.maximum(distances, 0, out=distances)


def distances_among(rows: FloatArray) -> DistancesTo:
    """Return a function from one row to the squared distances of all rows to it."""
    squares = np.einsum("ij,ij->i", rows, rows)

    def distances_to(row: int) -> FloatArray:
        distances: FloatArray = np.maximum(squares + squares[row] - 2 * (rows @ rows[row]), 0)
        return distances

    return distances_to


def distance_chunks(rows: FloatArray, others: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """Yield slices of rows and their ``squared_distances`` to all others, in bounded memory."""
    n_rows = max(1, MAX_CHUNK_VALUES // max(1, len(others)))
    for start in range(0, len(rows), n_rows):
        chunk = slice(start, start + n_rows)
        yield chunk, squared_distances(rows[chunk], others)


def nearest(rows: FloatArray, centres: FloatArray) -> tuple[Indices, FloatArray]:
    """Return for each row the index of the nearest centre and the squared distance to it; infinite without centres."""
    indices = np.zeros(len(rows), np.intp)
    distances = np.full(len(rows), np.inf, np.float32)
    if len(centres):
        for chunk, matrix in distance_chunks(rows, centres):
            indices[chunk] = matrix.argmin(axis=1)
            distances[chunk] = matrix.min(axis=1)
    return indices, distances


def sample(n_rows: int, n_wanted: int, random: np.random.Generator) -> Indices:
    """Return the indices, ascending, of at most ``n_wanted`` different rows."""
    if n_rows <= n_wanted:
        return np.arange(n_rows)
    return np.sort(random.choice(n_rows, n_wanted, replace=False))


def shuffled_order(keys: Sequence[NDArray[Any]], random: np.random.Generator) -> Indices:
    """Return the rows in ascending order of the first key, then of the next; what is equal in all, at random."""
    order: Indices = np.lexsort([random.random(len(keys[0])), *reversed(keys)])
    return order


def choose_greedily(
    closest: FloatArray,
    distances_to: DistancesTo,
    n_wanted: int,
    pick: Pick,
) -> tuple[list[int], FloatArray]:
    """Choose rows one by one by their distance to what is chosen already.

    Args:
        closest: squared distances, (m,), to what is chosen at the start.
        distances_to: how far all rows are from one of them.
        n_wanted: rows to choose; fewer are chosen when all others coincide with chosen ones.
        pick: which comes next.

    Returns:
        The rows in order, and all rows' squared distances to the closest chosen one.
    """
    chosen: list[int] = []
    while len(chosen) < n_wanted and closest.max(initial=0) > 0:
        chosen.append(pick(closest))
        closest = np.minimum(closest, distances_to(chosen[-1]))
        closest[chosen[-1]] = 0
    return chosen, closest


def farthest(random: np.random.Generator) -> Pick:
    """Return a pick of the row that is farthest from all chosen ones; of several, any."""

    def pick(closest: FloatArray) -> int:
        return int(random.choice(np.flatnonzero(closest == closest.max())))

    return pick


def by_square(random: np.random.Generator) -> Pick:
    """Return a pick at random in proportion to the squared distance (k-means++; Arthur and Vassilvitskii, 2007)."""

    def pick(closest: FloatArray) -> int:
        return int(_draw(closest, 1, random)[0])

    return pick


def cluster_centres(
    rows: FloatArray, n_clusters: int, random: np.random.Generator, weights: FloatArray | None = None
) -> FloatArray:
    """Return at most ``n_clusters`` centres by k-means on at most ``MAX_CLUSTERED_ROWS`` random rows.

    It begins with greedy k-means++: of several rows drawn the one that helps most. There are fewer centres where
    there are fewer different rows. Each row counts as its weight says, above 0, shape (m,); all alike without.
    """
    chosen_from = sample(len(rows), max(MAX_CLUSTERED_ROWS, n_clusters), random)
    rows = rows[chosen_from]
    weights = np.ones(len(rows), np.float32) if weights is None else weights[chosen_from]
    n_trials = 2 + int(np.log(n_clusters))

    def best_of_several(closest: FloatArray) -> int:
        drawn = _draw(closest * weights, n_trials, random)
        left = np.minimum(squared_distances(rows[drawn], rows), closest) @ weights
        return int(drawn[left.argmin()])

    first = int(random.integers(len(rows)))
    distances_to = distances_among(rows)
    chosen, _ = choose_greedily(distances_to(first), distances_to, n_clusters - 1, best_of_several)
    centres = rows[[first, *chosen]]
    weighted = rows * weights[:, None]
    for _ in range(N_ITERATIONS):
        members, _ = nearest(rows, centres)
        totals = np.bincount(members, weights, minlength=len(centres)).astype(np.float32)
        counts = np.bincount(members, minlength=len(centres))
        filled = np.flatnonzero(counts)
        starts = np.cumsum(counts)[filled] - counts[filled]
        sums = np.add.reduceat(weighted[np.argsort(members, kind="stable")], starts, axis=0)
        centres = centres.copy()
        centres[filled] = sums / totals[filled, None]
    return centres


def _draw(weights: FloatArray, n_wanted: int, random: np.random.Generator) -> Indices:
    cumulative = np.cumsum(weights, dtype=np.float64)
    rows: Indices = np.searchsorted(cumulative, random.random(n_wanted) * cumulative[-1], side="right")
    return np.minimum(rows, len(weights) - 1)


def repeats_last(
    order: Indices, rows: FloatArray, known: FloatArray, batch_size: int, random: np.random.Generator
) -> Indices:
    """Move rows that repeat an earlier one, or a known one, behind the first ``batch_size`` that do not.

    A repeat's squared distance is below ``REPEAT_SHARE`` of what is usual between nearest neighbours: the same photo
    saved, scaled or embedded again. On photos of three sets that is about where ``model.duplicates`` draws the line;
    it adapts to networks that draw the images of a class together.
    """
    limit = REPEAT_SHARE * usual_neighbour_distance(rows, random) + ROUNDING * float(np.square(rows).sum(axis=1).mean())
    batch: list[int] = []
    for start in range(0, len(order), WALK_ROWS):
        walk = order[start : start + WALK_ROWS]
        _, to_earlier = nearest(rows[walk], np.concatenate([known, rows[batch]]))
        between = squared_distances(rows[walk], rows[walk])
        kept: list[int] = []
        for index in np.flatnonzero(to_earlier > limit).tolist():
            if not (between[index, kept] <= limit).any():
                kept.append(index)
        batch.extend(walk[kept].tolist())
        if len(batch) >= batch_size:
            break
    return put_first(batch[:batch_size], order)


def usual_neighbour_distance(rows: FloatArray, random: np.random.Generator) -> float:
    """Return the median squared distance of a row to its nearest neighbour; 0 for fewer than two rows.

    Of many rows ``MAX_NEIGHBOUR_ROWS`` random ones are looked at.
    """
    rows = rows[sample(len(rows), MAX_NEIGHBOUR_ROWS, random)]
    if len(rows) < 2:
        return 0.0
    distances = squared_distances(rows, rows)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def put_first(rows: list[int], order: Indices) -> Indices:
    """Return the order with these rows at its beginning."""
    left = np.ones(len(order), np.bool_)
    left[rows] = False
    return np.concatenate([np.array(rows, np.intp), order[left[order]]])
