"""What a head is: the linear map from a backbone's features to one logit for each class.

numpy only, so that the web process can score without loading what fitting needs.

Shapes: n images, d features in one or more blocks, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
AnyFloats = NDArray[np.floating[Any]]

ROWS_PER_CHUNK = 256
SMALLEST_NORM = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A fitted head.

    ``block_sizes`` tell how a feature row is composed (the last block is the penultimate features), ``centre``
    has shape (d,), ``weight`` (d, k) and ``bias`` (k,); weight and bias act on what ``normalise`` returns.
    """

    block_sizes: tuple[int, ...]
    centre: FloatArray
    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        n_features = sum(self.block_sizes)
        shapes = (self.centre.shape, self.weight.shape[:1], self.bias.shape)
        if self.weight.ndim != 2 or shapes != ((n_features,), (n_features,), self.weight.shape[1:]):
            raise ValueError(
                f"a head on blocks of {self.block_sizes} features cannot have a centre of shape {self.centre.shape}, "
                f"a weight of {self.weight.shape} and a bias of {self.bias.shape}"
            )

    def logits(self, features: AnyFloats) -> FloatArray:
        """Return the logits, (n, k), of feature rows, (n, d), in float16 or wider.

        Raises:
            ValueError: the rows are not the kind this head was fitted on.
        """
        logits = np.empty((len(features), len(self.bias)), np.float32)
        for rows, normalised in normalised_chunks(features, self.block_sizes, self.centre):
            np.matmul(normalised, self.weight, out=logits[rows])
        logits += self.bias
        return logits


def signed_root(features: AnyFloats) -> FloatArray:
    """Return sign(x) * sqrt(|x|), which makes pooled activations less heavy-tailed (power normalisation)."""
    values = features.astype(np.float32)
    roots: FloatArray = np.abs(values)
    np.sqrt(roots, out=roots)
    np.copysign(roots, values, out=roots)
    return roots


def normalise(features: AnyFloats, block_sizes: tuple[int, ...], centre: FloatArray) -> FloatArray:
    """Return feature rows as a head sees them, (n, d).

    Signed root and centring; then each block to unit length. A row that lies on the centre stays zero.
    """
    normalised = np.empty(features.shape, np.float32)
    for rows, chunk in normalised_chunks(features, block_sizes, centre):
        normalised[rows] = chunk
    return normalised


def normalised_chunks(
    features: AnyFloats, block_sizes: tuple[int, ...], centre: FloatArray
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield slices of rows and what ``normalise`` makes of them: small enough to stay in the processor's cache.

    Raises:
        ValueError: the rows do not have as many features as the blocks.
    """
    if features.ndim != 2 or features.shape[1] != sum(block_sizes):
        raise ValueError(f"features of shape {features.shape} are not rows of blocks of {block_sizes}")
    for start in range(0, len(features), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        chunk = signed_root(features[rows])
        chunk -= centre
        stop = 0
        for size in block_sizes:
            block = chunk[:, stop : stop + size]
            stop += size
            norms = np.sqrt(np.einsum("ij,ij->i", block, block))
            block /= np.maximum(norms, SMALLEST_NORM)[:, None]
        yield rows, chunk
