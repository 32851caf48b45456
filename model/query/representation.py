"""Strategies that look at the images alone: what is typical, what covers most, what is far from all labels.

Each returns all rows of the pool, to be asked in this order; the first ``batch_size`` are chosen together.
"""

from __future__ import annotations

import numpy as np

from model.head import SMALLEST_NORM, FloatArray
from model.query.geometry import (
    Indices,
    choose_greedily,
    cluster_centres,
    distance_chunks,
    distances_among,
    farthest,
    nearest,
    put_first,
    sample,
    shuffled_order,
    squared_distances,
)
from model.query.pool import Pool

MAX_CLUSTERS = 500
SMALL_CLUSTER = 5
N_NEIGHBOURS = 20
MAX_NEIGHBOURHOOD_ROWS = 1000
MAX_COVERED_ROWS = 2000
PURITY = 0.95
N_RADII = 40


def typicality_order(pool: Pool, batch_size: int, random: np.random.Generator) -> Indices:
    """Ask the most typical image of each cluster without a label, large clusters first.

    TypiClust (Hacohen, Dekel and Weinshall: "Active Learning on a Budget: Opposite Strategies Suit High and Low
    Budgets", 2022), with as many clusters as there will be labels, at most ``MAX_CLUSTERS``. Where that is fewer
    than the batch, clusters take turns, those with fewest labels first. Clusters of fewer than ``SMALL_CLUSTER``
    images, outliers mostly, come last in each turn.
    """
    n_labelled = len(pool.labelled_features)
    n_clusters = min(n_labelled + batch_size, MAX_CLUSTERS)
    everything = np.concatenate([pool.labelled_features, pool.features])
    members, _ = nearest(everything, cluster_centres(everything, n_clusters, random))
    sizes, n_labels = np.bincount(members), np.bincount(members[:n_labelled], minlength=members.max() + 1)
    density = typicality(everything, members, random)[n_labelled:]
    cluster = members[n_labelled:]
    within = shuffled_order([cluster, -density], random)
    turns = np.empty(len(cluster), np.intp)
    counts = np.bincount(cluster, minlength=len(sizes))
    turns[within] = np.arange(len(cluster)) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled_order([turns + n_labels[cluster], sizes[cluster] < SMALL_CLUSTER, -sizes[cluster]], random)


def typicality(rows: FloatArray, clusters: Indices, random: np.random.Generator) -> FloatArray:
    """Return the inverse of each row's mean distance to its ``N_NEIGHBOURS`` nearest neighbours in its cluster, (m,).

    Of large clusters ``MAX_NEIGHBOURHOOD_ROWS`` random rows stand for all; alone in a cluster typicality is 0.
    """
    values = np.zeros(len(rows), np.float32)
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        others = members[sample(len(members), MAX_NEIGHBOURHOOD_ROWS, random)]
        n_neighbours = min(N_NEIGHBOURS, len(others) - 1)
        if n_neighbours:
            for chunk, distances in distance_chunks(rows[members], rows[others]):
                # Most rows are their own nearest neighbour, at distance zero.
                closest = np.partition(distances, n_neighbours, axis=1)[:, : n_neighbours + 1]
                values[members[chunk]] = n_neighbours / (np.sqrt(closest).sum(axis=1) + SMALLEST_NORM)
    return values


def coverage_order(pool: Pool, batch_size: int, random: np.random.Generator) -> Indices:
    """Ask the image that has most others, not yet covered, within a radius; then the next such image.

    ProbCover (Yehuda, Dekel, Hacohen and Weinshall: "Active Learning Through a Covering Lens", 2022). At most
    ``MAX_COVERED_ROWS`` random images are there to be covered and to cover; the others come after them. What is
    left after the batch is ordered by how many uncovered images it covers.
    """
    candidates = sample(len(pool.features), MAX_COVERED_ROWS, random)
    rows = pool.features[candidates]
    between = squared_distances(rows, rows)
    n_classes = 2 if pool.probabilities is None else pool.probabilities.shape[1]
    radius = squared_radius(rows, between, n_classes, random)
    edges = between <= radius
    _, to_labelled = nearest(rows, pool.labelled_features)
    edges[:, to_labelled <= radius] = False
    batch: list[int] = []
    degrees = edges.sum(axis=1)
    while len(batch) < batch_size and degrees.max(initial=0) > 0:
        chosen = int(random.choice(np.flatnonzero(degrees == degrees.max())))
        batch.append(chosen)
        covered = np.flatnonzero(edges[chosen])
        degrees -= edges[:, covered].sum(axis=1)
        edges[:, covered] = False
    values = np.full(len(pool.features), -1)
    values[candidates] = degrees
    return put_first(candidates[batch].tolist(), shuffled_order([-values], random))


def squared_radius(rows: FloatArray, between: FloatArray, n_classes: int, random: np.random.Generator) -> float:
    """Return the largest squared radius within which ``PURITY`` of the rows have only rows of their own cluster.

    Clusters, as many as there are classes, stand in for the classes that nobody knows yet.
    """
    members, _ = nearest(rows, cluster_centres(rows, n_classes, random))
    foreign = np.where(members[:, None] != members, between, np.inf).min(axis=1)
    if not np.isfinite(foreign).all():
        return float("inf")  # a single cluster
    return float(np.nextafter(np.quantile(foreign, 1 - PURITY), 0, dtype=np.float32))


def k_centre_order(pool: Pool, batch_size: int, random: np.random.Generator) -> Indices:
    """Ask the image that is farthest from all with a label and all chosen ones; then the next such image.

    CoreSet in its greedy form (Sener and Savarese: "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", 2018).
    """
    _, closest = nearest(pool.features, pool.labelled_features)
    batch, closest = choose_greedily(closest, distances_among(pool.features), batch_size, farthest(random))
    return put_first(batch, shuffled_order([-closest], random))
