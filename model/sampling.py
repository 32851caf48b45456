"""Drawing some rows out of many such that the same ones are drawn again, whatever changes around them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.head import AnyFloats

N_HASHED_COLUMNS = 64


def drawn_by_content(rows: AnyFloats, n_rows: int, seed: int = 0) -> NDArray[np.intp]:
    """Return the indices of at most ``n_rows`` out of rows, (n, d), in the order in which they are drawn.

    Those with the least hash of what is in them (multiplicative, with a random factor for each column): as good as
    drawn at random, but a row is drawn in the same place wherever it stands, and nearly all others stay when one
    comes or goes.
    """
    n_columns = rows.shape[1]
    columns = np.linspace(0, n_columns - 1, min(n_columns, N_HASHED_COLUMNS)).astype(np.intp)
    words = np.ascontiguousarray(rows[:, columns], np.float32).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(seed).integers(2**63, size=len(columns), dtype=np.uint64) * np.uint64(2)
    hashes = (words * (factors + np.uint64(1))).sum(axis=1)
    order = np.argsort(hashes, kind="stable")
    # Copies of a row come last: else a blank image that a thousand tasks have would be all that is drawn.
    repeats = np.diff(hashes[order], prepend=hashes[order[:1]] + np.uint64(1)) == 0
    return order[np.argsort(repeats, kind="stable")][:n_rows]
