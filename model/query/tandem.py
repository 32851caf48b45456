"""The default: typical images first, uncertain ones later, some at random.

While labels are few a model's uncertainty says little, and asking what is typical of each cluster is better than chance
by far; later uncertainty is. A share of each later batch is drawn at random, because only such images tell without bias
how good predictions for the pool are. To spread a later batch over clusters of uncertain images, or BADGE, was no
better than to ask the most uncertain ones. The constants were found on one set of photos with one backbone, and checked
on others (``benchmarks/active.py``).
"""

from __future__ import annotations

import numpy as np

from model.query.geometry import Indices, put_first, shuffled_order
from model.query.pool import Pool
from model.query.representation import typicality_order
from model.query.uncertainty import narrowness

TYPICAL_LABELS_PER_CLASS = 5
RANDOM_SHARE = 0.1


def tandem_order(pool: Pool, batch_size: int, random: np.random.Generator) -> tuple[Indices, Indices]:
    """Return all rows, the one to ask first in front, and those of the batch that were drawn at random."""
    n_typical = 0 if pool.probabilities is None else TYPICAL_LABELS_PER_CLASS * pool.probabilities.shape[1]
    if pool.probabilities is None or len(pool.labelled_targets) < n_typical:
        return typicality_order(pool, batch_size, random), np.empty(0, np.intp)
    uncertainty = narrowness(pool.probabilities, multiple=pool.multiple)
    return with_random_share(shuffled_order([-uncertainty], random), batch_size, random)


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
