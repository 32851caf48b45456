"""The default: typical images first, uncertain and different ones later, some at random.

While labels are few a model's uncertainty says little, and of a class without a label nothing at all: asking what is
typical of each cluster is better than chance by far. Later uncertainty is, spread over the pool, as the most uncertain
images are often alike. A share of each later batch is drawn at random, because only such images tell without bias how
good predictions for the pool are. ``benchmarks/active.py`` holds it against what it is made of: ``typicality``,
``margin`` and chance; its constants were found on the photos of that benchmark.
"""

from __future__ import annotations

import numpy as np

from model.query.geometry import Indices, cluster_centres, nearest, put_first, shuffled_order
from model.query.pool import Pool
from model.query.representation import typicality_order
from model.query.uncertainty import SMALLEST_PROBABILITY, Doubles, narrowness

TYPICAL_LABELS_PER_CLASS = 5
MOST_TYPICAL_LABELS_PER_CLASS = 10
"""Where a class has no label by then, it is so rare, if it is there at all, that typical images are not of it."""
UNCERTAIN_PER_CHOICE = 5
SMALLEST_WEIGHT = 1e-6
RANDOM_SHARE = 0.1


def tandem_order(pool: Pool, batch_size: int, random: np.random.Generator) -> tuple[Indices, Indices]:
    """Return all rows, the one to ask first in front, and those of the batch that were drawn at random."""
    if pool.probabilities is None or not has_enough_labels(pool, pool.probabilities.shape[1]):
        return typicality_order(pool, batch_size, random), np.empty(0, np.intp)
    order = diverse_order(pool, narrowness(pool.probabilities, multiple=pool.multiple), batch_size, random)
    return with_random_share(order, batch_size, random)


def has_enough_labels(pool: Pool, n_classes: int) -> bool:
    """Return whether every class has a label, and all together enough for the model's uncertainty to mean something."""
    targets = pool.labelled_targets
    if len(targets) < TYPICAL_LABELS_PER_CLASS * n_classes:
        return False
    counts = targets.sum(axis=0) if pool.multiple else np.bincount(targets, minlength=n_classes)
    return bool(counts.min() > 0) or len(targets) >= MOST_TYPICAL_LABELS_PER_CLASS * n_classes


def diverse_order(pool: Pool, uncertainty: Doubles, batch_size: int, random: np.random.Generator) -> Indices:
    """Choose the batch from the most uncertain images, one of each cluster of them; the rest by uncertainty.

    Zhdanov: "Diverse mini-batch Active Learning", 2019. ``UNCERTAIN_PER_CHOICE`` times as many images as are to be
    chosen are clustered by k-means, in which each counts as much as it is uncertain; the one nearest to the centre of
    its cluster is chosen.
    """
    order = shuffled_order([-uncertainty], random)
    candidates = order[: UNCERTAIN_PER_CHOICE * batch_size]
    rows = pool.features[candidates]
    largest = max(float(uncertainty.max()), SMALLEST_PROBABILITY)
    weights = np.maximum(uncertainty[candidates] / largest, SMALLEST_WEIGHT).astype(np.float32)
    members, distances = nearest(rows, cluster_centres(rows, min(batch_size, len(rows)), random, weights))
    by_cluster = shuffled_order([members, distances], random)
    _, starts = np.unique(members[by_cluster], return_index=True)
    return put_first(candidates[np.sort(by_cluster[starts])].tolist(), order)


def with_random_share(order: Indices, batch_size: int, random: np.random.Generator) -> tuple[Indices, Indices]:
    """Put images drawn at random, evenly spread, into the batch, and return them too.

    Of many batches, of a single image too, ``RANDOM_SHARE`` is random.
    """
    turns = np.floor(np.arange(batch_size + 1) * RANDOM_SHARE + random.random())
    places = np.flatnonzero(np.diff(turns))
    drawn = random.choice(len(order), len(places), replace=False)
    others = put_first(drawn.tolist(), order)[len(drawn) :]
    # Each insertion moves the later ones by one.
    return np.insert(others, places - np.arange(len(places)), drawn), drawn
