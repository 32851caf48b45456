"""From feature rows to the few dimensions that heads are fitted in, and back to a head on feature rows."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import scipy.linalg

from model.head import AnyFloats, FloatArray, Head, normalise, signed_root
from model.sampling import drawn_by_content

MAX_COMPONENTS = 200
MAX_PCA_ROWS = 1000
SMALLEST_VARIANCE_SHARE = 1e-7
WEIGHT_STEPS = 32
N_REMEMBERED = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preprocessing:
    """Normalisation (``model.head.normalise``), weights of the blocks, and a principal component analysis.

    ``centre`` has shape (d,); ``components``, (d, p), are the principal directions with the weights of their
    features' blocks.
    """

    block_sizes: tuple[int, ...]
    centre: FloatArray
    components: FloatArray

    def transform(self, features: AnyFloats) -> FloatArray:
        """Return the coordinates, (n, p), of feature rows, (n, d)."""
        n_components = self.components.shape[1]
        return self._head(self.components, np.zeros(n_components, np.float32)).logits(features)

    def head(self, weight: FloatArray, bias: FloatArray) -> Head:
        """Return the head on feature rows that equals ``weight``, (p, k), and ``bias``, (k,), on coordinates."""
        return self._head(np.ascontiguousarray(self.components @ weight, np.float32), bias.astype(np.float32))

    def _head(self, weight: FloatArray, bias: FloatArray) -> Head:
        return Head(block_sizes=self.block_sizes, centre=self.centre, weight=weight, bias=bias)


def earlier_block_weight(labels_per_class: float) -> float:
    """Return how much the blocks before the last count: little while labels are too few to tell what in them matters.

    Measured on photos in two views: a quarter is best at five labels per class, a half at twenty-five, 0.7 at fifty.
    In steps, so that mostly nothing changes with one label more.
    """
    steps = round(WEIGHT_STEPS * math.sqrt(labels_per_class / 100))
    return min(1.0, max(0.25, steps / WEIGHT_STEPS))


@dataclass(frozen=True, slots=True)
class _Reference:
    """Rows that are told apart by a digest of them, so that what was fitted to them is found again."""

    digest: bytes
    rows: AnyFloats = field(compare=False)


def fit_preprocessing(
    reference: AnyFloats, block_sizes: tuple[int, ...], earlier_weight: float, seed: int = 0
) -> Preprocessing:
    """Fit on all images there are, labelled or not: ``reference``, (n, d); the last block has weight 1.

    The components come from at most ``MAX_PCA_ROWS`` rows, drawn by what is in them: more change the leading ones
    hardly, and cost grows with the square of the rows. With the next label the images are mostly the same, in another
    order: then the same is returned again, without any of the work.
    """
    rows = np.ascontiguousarray(reference[drawn_by_content(reference, MAX_PCA_ROWS, seed)])
    digest = hashlib.sha256(rows.tobytes()).digest()
    return _fit_preprocessing(_Reference(digest, rows), block_sizes, earlier_weight)


@lru_cache(maxsize=N_REMEMBERED)
def _fit_preprocessing(reference: _Reference, block_sizes: tuple[int, ...], earlier_weight: float) -> Preprocessing:
    rows = reference.rows
    centre = signed_root(rows).mean(axis=0, dtype=np.float64).astype(np.float32)
    weights = np.ones(len(centre), np.float32)
    weights[: len(centre) - block_sizes[-1]] = earlier_weight
    components = principal_components(normalise(rows, block_sizes, centre) * weights)
    return Preprocessing(block_sizes=block_sizes, centre=centre, components=components * weights[:, None])


def principal_components(rows: FloatArray) -> FloatArray:
    """Return the leading principal directions, (d, p) with p <= ``MAX_COMPONENTS``, of rows, (n, d).

    Directions without variance are left out; at least one is always returned.
    """
    centred = rows - rows.mean(axis=0)
    n_rows, n_features = centred.shape
    by_rows = n_rows < n_features
    products = centred @ centred.T if by_rows else centred.T @ centred
    size = len(products)
    variances, vectors = scipy.linalg.eigh(
        products, subset_by_index=(max(0, size - MAX_COMPONENTS), size - 1), check_finite=False
    )
    kept = variances > max(variances[-1], 0) * SMALLEST_VARIANCE_SHARE
    kept &= variances > np.finfo(np.float32).tiny
    if not kept.any():
        return np.eye(n_features, 1, dtype=np.float32)
    variances, vectors = variances[kept][::-1], vectors[:, kept][:, ::-1]
    if by_rows:
        vectors = centred.T @ (vectors / np.sqrt(variances))
    return np.ascontiguousarray(vectors, np.float32)
